"""Linear layers held in NF4 by bitsandbytes: four bits a weight, dequantised at every pass."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from graftline.kernels import nf4
from graftline.kernels.lora_linear import frozen_linear

# On a processor with bf16 instructions bitsandbytes warns, on import, that it found no kernels on the Hub.
_loud = logging.getLogger("bitsandbytes").level
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: E402

logging.getLogger("bitsandbytes").setLevel(_loud)


class Nf4Linear(Linear4bit):
    """bitsandbytes' layer, computed by our kernel: what flows back to its input keeps no dequantised weight either, and
    rows of any width are dequantised right (`dequantised`)."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return frozen_linear(x, lambda: _quantised_part(self, x.dtype), bias)


class PrincipalNf4Linear(Nf4Linear):
    """A layer that holds the principal part BA of its weight in float, and the rest in NF4: Q(W − BA)x + B(Ax)."""

    a: Tensor
    b: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rest: Tensor = super().forward(x)
        return rest + linear(linear(x, self.a), self.b)


def quantised(weight: Tensor, *, double: bool, principal: tuple[Tensor, Tensor] | None = None) -> Nf4Linear:
    """A frozen layer without bias, with this weight in NF4: blocks of 64, and of their largest values' 256.

    Args:
        weight: [out, in], float; quantised where it lies.
        double: whether the blocks' largest values are quantised, too (4.13 instead of 4.5 bits a weight).
        principal: A [r, in] and B [out, r] that stay in float; the rest is quantised.
    """
    out, into = weight.shape
    kind = Nf4Linear if principal is None else PrincipalNf4Linear
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


def dequantise_to(layer: Nf4Linear, dtype: torch.dtype) -> None:
    """Have a layer dequantise to this dtype, forward and backward."""
    layer.compute_dtype, layer.compute_type_is_set = dtype, True
    packed: Any = layer.weight
    packed.quant_state.dtype = dtype
    if isinstance(layer, PrincipalNf4Linear):
        layer.a, layer.b = layer.a.to(dtype), layer.b.to(dtype)


def dequantised(layer: Nf4Linear, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out, in] that a layer multiplies with."""
    weight = _quantised_part(layer, dtype)
    if isinstance(layer, PrincipalNf4Linear):
        weight += layer.b.to(dtype) @ layer.a.to(dtype)
    return weight


def _quantised_part(layer: Nf4Linear, dtype: torch.dtype) -> Tensor:
    """By bitsandbytes' own code, a block a row: 2.8 G weights/s on one core, twice what torch's look-up reaches
    [measured]. Given rows of 80, say, 0.50 takes other blocks' largest values on processors with AVX-512."""
    packed: Any = layer.weight
    state = packed.quant_state
    if layer.in_features * layer.out_features % nf4.BLOCK:
        nested = (state.state2.absmax, state.offset) if state.nested else (None, None)
        held = nf4.Nf4(packed.data.view(-1), state.absmax, tuple(state.shape), *nested)
        return nf4.dequantise(held, dtype)
    absmax, ops = state.absmax, torch.ops.bitsandbytes
    if state.nested:
        coarse = state.state2
        absmax = ops.dequantize_blockwise.default(absmax, coarse.absmax, coarse.code, nf4.COARSE, torch.float32)
        absmax.add_(state.offset)
    by_block = (absmax.numel(), nf4.BLOCK)
    weight: Tensor = ops.dequantize_4bit.default(packed.data, absmax, nf4.BLOCK, "nf4", by_block, dtype)
    return weight.view(state.shape)
