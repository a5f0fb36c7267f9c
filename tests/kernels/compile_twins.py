"""Compiles every Triton twin for a GPU that is not there, as its own launcher launches it.

Triton compiles down to the processor's own code on any machine; only loading and running it takes a GPU, and that is
what the driver here leaves out. Prints the kernels it compiled, as file.kernel.

    python tests/kernels/compile_twins.py [sm, such as 90]
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from graftline.kernels import grouped_lora, linear_cross_entropy, lora_linear, nf4, rms_norm, rope, swiglu
from graftline.kernels.grouped_lora import Factors, mixture, segment


class Absent:
    """A driver of a GPU that takes programs and runs none."""

    def __init__(self, sm: int) -> None:
        self.sm = sm
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (0, 0, 0, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 232_448, "multiprocessor_count": 132},
            unload_module=lambda *_: None,
        )
        self.launcher_cls = lambda *_: lambda *_: None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1)

    def clear_cache(self, _: torch.Tensor) -> None: ...


def launches(dtype: torch.dtype) -> None:
    """Every launcher once in its fullest form, and what leaves something out."""
    x, gradient = torch.zeros(40, 128, dtype=dtype), torch.zeros(40, 96, dtype=dtype)
    low, a, b = (torch.zeros(shape, dtype=dtype) for shape in ((40, 20), (20, 128), (96, 20)))
    for double in (True, False):
        whole = nf4.quantise(torch.ones(96, 128), double)
        nf4.quantise_triton(torch.ones(96 * 128, dtype=dtype))
        nf4.dequantise_triton(whole, dtype)
        nf4.nf4_linear_triton(x, whole, x[0, :96], low, b, 0.5)
        nf4.nf4_linear_triton(x, whole, None, None, None, 1.0)
        nf4.nf4_linear_backward_triton(gradient, whole, low, a)
        nf4.nf4_linear_backward_triton(gradient, whole, None, None)
    lora_linear.add_low_rank_triton(gradient, x, a, b, 0.5)
    lora_linear.add_low_rank_triton(x, gradient, b.t(), a.t(), 0.5)
    own = [Factors(a, b, 2.0), Factors(a[:4], b[:, :4].contiguous(), 1.0)]
    choices = torch.tensor([[0, 1]])
    for tokens in (40, 200):  # of so many, the sum over the inputs is not split
        wide, narrow = torch.zeros(tokens, 128, dtype=dtype), torch.zeros(tokens, 96, dtype=dtype)
        for used in (segment([0, 1] * (tokens // 2)), mixture(choices.expand(tokens, 2), torch.ones(tokens, 2))):
            for forward, given, output in ((True, wide, narrow), (False, narrow, wide)):
                lows = grouped_lora.shrink_triton(given, used, own, forward)
                grouped_lora.expand_triton(output, lows, used, own, forward)
    labels, found = torch.zeros(40, dtype=torch.long), torch.zeros(2, 40)
    for wanted in (False, True):
        other = torch.zeros_like(x) if wanted else None
        linear_cross_entropy.row_softmax_triton(x, labels, found[0], found[1], True, wanted, other)
    weight, scale = torch.ones(128, dtype=dtype), torch.ones(40)
    rms_norm.forward_triton(x, weight, 1e-5)
    for for_weight in (True, False):
        rms_norm.backward_triton(x, x, weight, scale, True, for_weight)
    rope.turned_triton(x.view(2, 20, 2, 64), x.view(2, 20, 2, 64)[:1, :, 0], x.view(2, 20, 2, 64)[:1, :, 1])
    swiglu.swiglu_backward_triton(x, x, swiglu.swiglu_triton(x, x))


def compiled() -> Iterator[str]:
    """Every kernel of ours that was launched."""
    for name, module in sys.modules.items():
        if name.startswith("graftline.kernels."):
            for kernel in vars(module).values():
                if isinstance(kernel, JITFunction) and kernel.device_caches:
                    yield f"{Path(kernel.fn.__code__.co_filename).stem}.{kernel.fn.__name__}"


def main() -> None:
    sm: Any = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    driver.set_active(Absent(sm))
    launches(torch.bfloat16)
    print(*sorted(set(compiled())), sep="\n")
    print(f"compiled for sm_{sm} by Triton {triton.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
