"""A run as a terminal sees it: a live table while it goes on, the whole account at the end, RESULT last."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import COMMAND, ROOT

RUN = f"{COMMAND} run examples/own_method.py --address here"


@pytest.mark.skipif(shutil.which("script") is None, reason="needs the command `script`, which gives a terminal")
def test_the_table_is_live_and_result_comes_last(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "typescript"
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", RUN, str(log)],
        env=environment, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    shown = log.read_text(encoding="utf-8")
    assert "\x1b[" in shown and re.search(r"\x1b\[\d*A", shown), "the table is drawn again in its place"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    for name in ("Jsonl", "Shouting", "TopK"):
        assert re.search(rf"✓\s+{name}", plain), f"{name} ends as done"
    lines = [line.strip() for line in plain.splitlines() if line.strip() and not line.startswith("Script ")]
    assert lines[-1].startswith('RESULT {"pipeline": "own_method"') and "report.html" in plain
