"""A frozen linear layer with a LoRA on it: y = W x + bias + s · B (A x), and what flows back, without a needless pass.

The torch reference, which is also the CPU path. Autograd's own graph of it makes two more passes over the output, to
scale and to add, two over the input's gradient, and keeps a dequantised W where the layer is quantised; here each sum
is part of a matrix product, and W is asked for once forward and once backward. SmolLM2-135M, rank 16 on all layers,
352 tokens a step, bf16 with AMX on 2 threads: a step of 0.80 s becomes 0.72 s over NF4 [measured].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Weight = Callable[[], Tensor]
"""Gives W [out, in] in the dtype of x: the layer's own, or dequantised on the spot."""


def lora_linear(x: Tensor, weight: Weight, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The layer's output; x, a and b get gradients, W and bias none.

    Args:
        x: [..., in].
        weight: W.
        bias: [out], or None.
        a: [rank, in]; `b`: [out, rank], both in the dtype of x.
        scale: s.
    """
    output: Tensor = _LoraLinear.apply(x, a, b, weight, bias, scale)
    return output


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Weight, bias: Tensor | None, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.t()
        output = torch.nn.functional.linear(rows, weight(), bias)
        output.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, low, a, b)
        ctx.weight, ctx.scale, ctx.shape = weight, scale, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, a, b = ctx.saved_tensors
        for_x, for_a, for_b = ctx.needs_input_grad[:3]
        gradient = gradient.reshape(-1, gradient.shape[-1])
        of_x = of_a = of_b = None
        if for_b:
            of_b = (gradient.t() @ low).mul_(ctx.scale)
        if for_x or for_a:
            of_low = (gradient @ b).mul_(ctx.scale)
            if for_a:
                of_a = of_low.t() @ rows
            if for_x:
                of_x = (gradient @ ctx.weight()).addmm_(of_low, a).view(ctx.shape)
        return of_x, of_a, of_b, None, None, None
