"""A user's terminal: the installed `graftline` command, its streams and exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).parent / "graftline")


@dataclass(frozen=True)
class Finished:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The RESULT line, which must be the last one on stdout."""
        last = self.out.strip().splitlines()[-1]
        assert last.startswith("RESULT "), last
        found: dict[str, Any] = json.loads(last.removeprefix("RESULT "))
        return found


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a user with a store of their own."""
    return {**os.environ, "GRAFTLINE_STORE": str(tmp_path / "store"), "RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def graftline(environment: dict[str, str]) -> Callable[..., Finished]:
    """Runs `graftline …` from the repository's root and waits for it."""

    def call(*arguments: str, timeout: float = 600, cwd: Path = ROOT) -> Finished:
        done = subprocess.run(
            [COMMAND, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=timeout
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def start(environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Starts `graftline …` in a session of its own, so that a test can kill the driver alone."""

    def call(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *arguments],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return call


@pytest.fixture
def pipeline_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a user's pipeline file."""

    def write(source: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(source, encoding="utf-8")
        return path

    return write
