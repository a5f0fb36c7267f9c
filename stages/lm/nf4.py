"""Linear layers held in NF4 by bitsandbytes: four bits a weight, dequantised at every pass."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

# On a processor with bf16 instructions bitsandbytes warns, on import, that it found no kernels on the Hub.
_loud = logging.getLogger("bitsandbytes").level
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
from bitsandbytes.functional import dequantize_4bit  # noqa: E402
from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: E402

logging.getLogger("bitsandbytes").setLevel(_loud)


class PrincipalLinear4bit(Linear4bit):
    """A layer that holds the principal part BA of its weight in float, and the rest in NF4: Q(W − BA)x + B(Ax)."""

    a: Tensor
    b: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rest: Tensor = super().forward(x)
        return rest + linear(linear(x, self.a), self.b)


def quantised(weight: Tensor, *, double: bool, principal: tuple[Tensor, Tensor] | None = None) -> Linear4bit:
    """A frozen layer without bias, with this weight in NF4: blocks of 64, and of their largest values' 256.

    Args:
        weight: [out, in], float; quantised where it lies.
        double: whether the blocks' largest values are quantised, too (4.13 instead of 4.5 bits a weight).
        principal: A [r, in] and B [out, r] that stay in float; the rest is quantised.
    """
    out, into = weight.shape
    kind = Linear4bit if principal is None else PrincipalLinear4bit
    layer = kind(into, out, bias=False, compress_statistics=double, quant_type="nf4", device="meta")
    weight = weight.detach()
    if principal is not None:
        a, b = principal
        layer.register_buffer("a", a, persistent=False)
        layer.register_buffer("b", b, persistent=False)
        weight = weight.float() - b @ a
    packed: Any = Params4bit(weight, requires_grad=False, compress_statistics=double, quant_type="nf4", module=layer)
    layer.weight = packed.to(weight.device)
    # bitsandbytes 0.50 repacks the weight on such processors as soon as the layer is evaluated, for a product that has
    # no gradient: training on after an evaluation would then silently lose what flows through the base.
    layer.support_avx512bf16_for_cpu = False
    return layer


def dequantise_to(layer: Linear4bit, dtype: torch.dtype) -> None:
    """Have a layer dequantise to this dtype, forward and backward."""
    layer.compute_dtype, layer.compute_type_is_set = dtype, True
    packed: Any = layer.weight
    packed.quant_state.dtype = dtype
    if isinstance(layer, PrincipalLinear4bit):
        layer.a, layer.b = layer.a.to(dtype), layer.b.to(dtype)


def dequantised(layer: Linear4bit, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out, in] that a layer multiplies with."""
    packed: Any = layer.weight
    state = copy.copy(packed.quant_state)
    state.dtype = dtype
    weight = dequantize_4bit(packed.data, state)
    if isinstance(layer, PrincipalLinear4bit):
        weight += layer.b.to(dtype) @ layer.a.to(dtype)
    return weight
