"""What the twins share: a kernel's file imports without Triton, and a machine without a GPU never launches one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graftline.kernels.twin import blocks, compiled, tile

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted(path.stem for path in ROOT.joinpath("kernels").glob("*.py"))


def test_a_tensor_on_the_cpu_runs_the_reference():
    assert not compiled(torch.zeros(1))


def test_tiles_are_powers_of_two_that_a_gpu_multiplies():
    assert [tile(length) for length in (1, 16, 17, 64, 100, 1000)] == [16, 16, 32, 64, 128, 128]
    assert tile(0) == 16 and tile(5, least=1) == 8 and tile(300, most=64) == 64
    assert [blocks(length, 64) for length in (0, 1, 64, 65)] == [0, 1, 1, 2]


@pytest.mark.real
def test_every_kernel_imports_and_computes_without_triton():
    """Where there is no wheel of it, the references are all there is."""
    code = f"""
import sys
sys.modules["triton"] = None  # an import of it raises
import importlib
for name in {KERNELS!r}:
    importlib.import_module("graftline.kernels." + name)
import torch
from graftline.kernels import nf4, twin
assert twin.triton is None and not twin.INTERPRETED
print(float(nf4.dequantise(nf4.quantise(torch.ones(3, 64))).sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "192.0\n"), done.stderr


@pytest.mark.real
def test_every_twin_compiles_for_a_gpu():
    """Triton's compiler needs no GPU: `compile_twins.py` launches each twin under a driver that only pretends to."""
    script = Path(__file__).with_name("compile_twins.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in ROOT.joinpath("kernels").glob("*.py"):
        for source in path.read_text(encoding="utf-8").split("\n@jit\ndef ")[1:]:
            kernel = f"{path.stem}.{source.partition('(')[0]}"
            called = "tl.program_id(" not in source  # by another kernel, and compiled with it
            assert called or kernel in done.stdout.split(), f"{script.name} does not launch {kernel}"
