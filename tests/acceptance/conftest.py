"""A user's terminal: the installed `graftline` command, its streams and exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..stages.serve.conftest import adapter, base, committed
from ..stages.sweep.conftest import tuned

__all__ = ["adapter", "base", "committed", "tuned"]  # fixtures, which a service's and a sweep's own tests share
ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).parent / "graftline")


FILE = "examples/quickstart.py"
DRY = ("--set", "model=tiny", "--set", "engine=scripted", "--set", "epochs=0.5")
"""Has the quickstart run without a real model: everything in it, in a minute."""


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
    return user(tmp_path / "store")


def user(store: Path) -> dict[str, str]:
    return {**os.environ, "GRAFTLINE_STORE": str(store), "RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def graftline(environment: dict[str, str]) -> Callable[..., Finished]:
    """Runs `graftline …` from the repository's root and waits for it."""
    return caller(environment)


def caller(environment: dict[str, str]) -> Callable[..., Finished]:
    def call(*arguments: str, timeout: float = 600, cwd: Path = ROOT) -> Finished:
        done = subprocess.run(
            [COMMAND, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=timeout
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return call


@dataclass(frozen=True)
class DryRun:
    """The quickstart on the tiny model, killed in training and run again.

    Args:
        store: where it was made.
        planned: what `plan --json` said before.
        result: the RESULT of the second run.
    """

    store: str
    planned: dict[str, Any]
    result: dict[str, Any]


@pytest.fixture(scope="session")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    store = tmp_path_factory.mktemp("dry") / "store"
    environment = user(store)
    planned = caller(environment)("plan", FILE, *DRY, "--json")
    assert planned.code == 0, planned.err
    killed_in_training(starter(environment), store, *DRY)
    done = caller(environment)("run", FILE, *DRY)
    assert done.code == 0, done.err
    return DryRun(str(store), json.loads(planned.out), done.result)


def killed_in_training(start: Callable[..., subprocess.Popen[str]], store: Path, *more: str) -> None:
    """Ends the quickstart's driver, and it alone, by SIGKILL when all drafts are there and adapters are trained on
    them."""
    process = start("run", FILE, *more, "--store", str(store))
    deadline = time.monotonic() + 600
    while not list(store.glob("artefacts/KmeansQuality-*/*/artefact.json")):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def start(environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Starts `graftline …` in a session of its own, so that a test can kill the driver alone."""
    return starter(environment)


def starter(environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
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
