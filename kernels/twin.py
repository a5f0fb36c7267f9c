"""Triton where it is there, and the form of every kernel's file.

A kernel is one file, read top to bottom: what it computes; the *torch reference*, which is the tests' oracle and what
runs on a CPU; the *Triton twin*, that is `@jit` kernels and the function that launches them, whose name ends in
`_triton`; and the *dispatcher*, the name that callers use, with the measurement that set each threshold beside it:

    def scaled(x: Tensor) -> Tensor:
        return scaled_triton(x) if compiled(x) else scaled_torch(x)

Twins are tested on a CPU in Triton's interpreter (TRITON_INTERPRET=1), on a GPU as they are compiled; the interpreter
never serves. It gets bf16 arithmetic wrong without saying so, truncates where it stores bf16, and tunes nothing: there,
twins are tested in fp32 and fp16 alone. A file imports where there is no Triton. What was measured: `MEASURED.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    triton: Any
    tl: Any
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:  # there is no wheel of it for this platform
        triton = tl = None

INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)
"""Whether the twins of this process are interpreted; Triton asks the environment once, where a kernel is defined."""


def jit(kernel: Callable[..., None]) -> Any:
    """`triton.jit`; without Triton the function as it is, which nothing launches."""
    return kernel if triton is None else triton.jit(kernel)


def compiled(x: torch.Tensor) -> bool:
    """Whether a kernel on this tensor runs as its Triton twin."""
    return triton is not None and x.is_cuda and not INTERPRETED


def blocks(length: int, size: int) -> int:
    """How many blocks of this size cover a length."""
    return -(-length // size)


def tile(length: int, least: int = 16, most: int = 128) -> int:
    """The smallest power of two that covers a length, within bounds: `tl.dot` takes no tile below 16 on a GPU."""
    return min(max(1 << max(length - 1, 0).bit_length(), least), most)


def ranks_tile(ranks: int) -> int:
    """The tile that takes all ranks of an adapter."""
    return tile(ranks, most=1 << 20)


def precision(x: torch.Tensor) -> str:
    """How `tl.dot` multiplies fp32: as torch has been told to."""
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
