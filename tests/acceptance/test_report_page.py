"""The report in a real browser: its sections are there, nothing is fetched, the console is silent."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.real
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_every_section_without_a_word(
    graftline: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    assert graftline("run", "examples/own_method.py", "--address", "here").code == 0
    (page,) = Path(environment["GRAFTLINE_STORE"]).glob("runs/2*/report.html")
    picture = tmp_path / "report.png"
    common = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--window-size=1280,2400",
    ]  # fmt: skip
    shown = subprocess.run([*common, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for section in ("The pipeline", "Rows", "Scores", "Cost"):
        assert f">{section}</h2>" in shown.stdout, section
    assert "<svg" in shown.stdout and "CONSOLE" not in shown.stderr, "an error, or something the page asked for"
    drawn = subprocess.run([*common, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=60)
    assert drawn.returncode == 0 and picture.stat().st_size > 20_000
