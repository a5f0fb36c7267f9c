"""Training over NF4 is faster than with the stock parts; `tests/bench/nf4_training.py` measures both side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "nf4_training.py"


@pytest.mark.slow
def test_training_over_nf4_is_half_as_fast_again_as_stocks_faster_dtype() -> None:
    """A ratio, of steps in turn: an absolute speed is the machine's. With AMX it is 250 tokens/s, besides."""
    done = subprocess.run(
        [sys.executable, str(BENCH), "--steps", "5"], capture_output=True, text=True, timeout=900, cwd=BENCH.parents[2]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found = json.loads(line.removeprefix("RESULT "))
    assert found["stock_dtype"] in ("bfloat16", "float32") and found["stock_tokens_per_second"] > 0
    assert found["ratio"] >= 1.5, found
    cpu = Path("/proc/cpuinfo")
    if cpu.exists() and "amx_bf16" in cpu.read_text():
        assert found["tokens_per_second"] >= 250, found
