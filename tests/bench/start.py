"""How long users wait before anything happens: the import, `plan`, the first stage of a run, and a cached run.

The quickstart's whole pipeline, with the tiny model and the scripted engine. Each figure is the median of fresh
processes; the first run starts Ray and has an empty store, the cached one finds everything in it.

    python tests/bench/start.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GRAFTLINE = [sys.executable, "-m", "graftline.pipelines"]
QUICKSTART = ["examples/quickstart.py", "--set", "model=tiny", "--set", "engine=scripted"]
IMPORT = [sys.executable, "-c", "import graftline.stages, graftline.pipelines"]
NOTHING = [sys.executable, "-c", "pass"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as store:
        run = [*GRAFTLINE, "run", *QUICKSTART, "--store", store]
        first, whole = until(run, "started")
        seconds = {
            "python": timed(NOTHING, rounds),
            "import": timed(IMPORT, rounds),
            "help": timed([*GRAFTLINE, "--help"], rounds),
            "plan": timed([*GRAFTLINE, "plan", *QUICKSTART, "--store", store], rounds),
            "first_stage": first,
            "run": whole,
            "cached": timed(run, rounds),
        }
    result = {"bench": "start", "rounds": rounds, **{name: round(each, 2) for name, each in seconds.items()}}
    print("RESULT", json.dumps(result))


def timed(command: list[str], rounds: int) -> float:
    """The median of some processes' seconds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def until(command: list[str], word: str) -> tuple[float, float]:
    """Seconds of a process until a line with this word, and in all."""
    started = time.perf_counter()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    heard = None
    for line in process.stdout:
        if heard is None and word in line:
            heard = time.perf_counter() - started
    if process.wait() or heard is None:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode} and no stage was seen to start")
    return heard, time.perf_counter() - started


if __name__ == "__main__":
    main()
