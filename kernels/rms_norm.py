"""RMS norm: y = w · x / √(mean(x²) + eps) over the last dimension, and what flows back.

The torch reference computes in fp32 (fp64 for fp64) what torch's own graph copies to fp32 several times: the scaling of
rows is done by torch's batch norm with rows for channels, the way back by its layer norm with a mean of nothing, both
of which read and write the given number format once. Forward and backward of [352, 576] on one thread take 0.33 ms of
processor time instead of transformers' 1.33 ms in bf16, and 0.23 ms instead of 1.07 ms in fp32 [measured].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from graftline.kernels.twin import blocks, compiled, jit, tl


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm; x and weight get gradients.

    Args:
        x: [..., n].
        weight: w [n].
        eps: added to the mean square.
    """
    output: Tensor = _RmsNorm.apply(x, weight, eps)
    return output


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        output, scale = (forward_triton if compiled(rows) else forward_torch)(rows, weight, eps)
        ctx.save_for_backward(rows, weight, scale)
        return output.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, scale = ctx.saved_tensors
        shape, gradient = gradient.shape, gradient.reshape(rows.shape)
        backward = backward_triton if compiled(rows) else backward_torch
        of_x, of_weight = backward(gradient, rows, weight, scale, *ctx.needs_input_grad[:2])
        return None if of_x is None else of_x.view(shape), of_weight, None


def forward_torch(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of [rows, n], and what each row was multiplied with."""
    wide = _wide(x)
    mean_square = torch.linalg.vector_norm(x, dim=-1, dtype=wide).square_().div_(x.shape[1])
    nothing = torch.zeros_like(mean_square)
    output = batch_norm(x[None], nothing, mean_square, eps=eps)[0].mul_(weight)
    return output, mean_square.add_(eps).rsqrt_()


def backward_torch(
    gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor, for_x: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What flows back to [rows, n] and to the weight, as far as it is asked for."""
    of_x = of_weight = None
    nothing, wide, count = torch.zeros_like(scale), _wide(x), x.shape[1]
    if for_x:
        # Layer norm also takes off the mean of w · gradient, which is put back.
        of_x = torch.ops.aten.native_layer_norm_backward(
            gradient, x, (count,), nothing[:, None], scale[:, None], weight.to(wide), None, (True, False, False)
        )[0]
        of_x.add_(torch.mv(gradient, weight).to(wide).mul_(scale / count).to(x.dtype)[:, None])
    if for_weight:
        normed = batch_norm(x[None], nothing, scale.pow(-2), eps=0.0)[0]
        of_weight = (gradient * normed).sum(0, dtype=wide).to(weight.dtype)
    return of_x, of_weight


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def forward_triton(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`forward_torch`, a row a program."""
    x, weight = x.contiguous(), weight.contiguous()
    rows, count = x.shape
    output = torch.empty_like(x)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    _forward[(rows,)](x, weight, output, scale, count, eps, COLUMNS=_columns(count), num_warps=_warps(count))
    return output, scale


ROWS = 32
"""Rows of a program on the way back, whose part of the weight's gradient is one sum."""


def backward_triton(
    gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor, for_x: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """`backward_torch`, 32 rows a program."""
    gradient, weight = gradient.contiguous(), weight.contiguous()
    rows, count = x.shape
    programs = blocks(rows, ROWS)
    of_x = torch.empty_like(x)
    parts = torch.empty(programs if for_weight else 0, count, dtype=torch.float32, device=x.device)
    _backward[(programs,)](
        *(gradient, x, weight, scale, of_x, parts, rows, count),
        COLUMNS=_columns(count), ROWS=ROWS, WEIGHT=for_weight, num_warps=_warps(count),
    )  # fmt: skip
    return of_x if for_x else None, parts.sum(0).to(weight.dtype) if for_weight else None


def _columns(count: int) -> int:
    return max(16, 1 << (count - 1).bit_length())


def _warps(count: int) -> int:
    return min(max(_columns(count) // 256, 1), 16)


@jit
def _forward(x, weight, output, scale, count, eps, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < count
    given = tl.load(x + row * count + column, mask=inside, other=0.0).to(tl.float32)
    by = 1 / tl.sqrt(tl.sum(given * given, axis=0) / count + eps)
    tl.store(scale + row, by)
    # Rounded before the weight, as transformers does it.
    normed = (given * by).to(output.dtype.element_ty).to(tl.float32)
    normed *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * count + column, normed.to(output.dtype.element_ty), mask=inside)


@jit
def _backward(  # type: ignore[no-untyped-def]
    gradient, x, weight, scale, of_x, parts, rows, count,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.arange(0, COLUMNS)
    inside = column < count
    by_weight = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    part = tl.zeros((COLUMNS,), tl.float32)
    for row in range(first, tl.minimum(first + ROWS, rows)):
        given = tl.load(x + row * count + column, mask=inside, other=0.0).to(tl.float32)
        back = tl.load(gradient + row * count + column, mask=inside, other=0.0).to(tl.float32)
        by = tl.load(scale + row)
        normed = given * by
        if WEIGHT:
            part += back * normed
        back *= by_weight
        back = (back - normed * (tl.sum(back * normed, axis=0) / count)) * by
        tl.store(of_x + row * count + column, back.to(of_x.dtype.element_ty), mask=inside)
    if WEIGHT:
        tl.store(parts + tl.program_id(0) * count + column, part, mask=inside)
