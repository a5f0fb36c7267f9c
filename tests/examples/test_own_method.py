"""The README's own method: short, and the same from `graftline run` and from `python file.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples/own_method.py"


def test_it_is_short_and_stands_in_the_readme() -> None:
    source = FILE.read_text()
    assert len(source.splitlines()) < 40
    own = source[source.index("class Shouting") : source.index("if __name__")].strip()
    assert own in (ROOT / "README.md").read_text()


@pytest.mark.real
def test_both_ways_to_run_it_make_one_artefact(tmp_path: Path) -> None:
    environment = {**os.environ, "GRAFTLINE_STORE": str(tmp_path / "store")}
    plain = subprocess.run(
        [sys.executable, str(FILE)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert plain.returncode == 0, plain.stderr
    assert len(plain.stdout.strip().splitlines()) == 5
    command = str(Path(sys.executable).parent / "graftline")
    again = subprocess.run(
        [command, "run", str(FILE)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stderr
    assert '"ran": 0' in again.stdout, "the class has one identity, so the second run finds everything cached"
