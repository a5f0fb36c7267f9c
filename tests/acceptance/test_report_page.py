"""The report in a real browser: its sections are there, nothing is fetched, the console is silent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import DryRun

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


SECTIONS = (
    "The pipeline", "Evaluation", "Merging", "Routing", "Rows", "Scores", "Sweep", "Training", "Generated rows",
    "Service", "Cost", "Environment",
)  # fmt: skip


@pytest.mark.real
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_every_section_without_a_word(dry_run: DryRun, tmp_path: Path) -> None:
    page = max(Path(dry_run.store).glob("runs/2*/report.html"))  # of the latest run
    picture = tmp_path / "report.png"
    common = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--window-size=1280,2400",
    ]  # fmt: skip
    shown = subprocess.run([*common, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for section in SECTIONS:
        assert f">{section}</h2>" in shown.stdout, section
    assert "<svg" in shown.stdout and "CONSOLE" not in shown.stderr, "an error, or something the page asked for"
    drawn = subprocess.run([*common, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=60)
    assert drawn.returncode == 0 and picture.stat().st_size > 100_000
