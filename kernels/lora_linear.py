"""Frozen linear layers with LoRA on them: yᵢ = Wᵢ x + biasᵢ + sᵢ · Bᵢ (Aᵢ x), and what flows back, without a
needless pass. Layers that share their input (q, k, v; gate, up) are one call: x is kept once, their A are one matrix
product, and what flows back to x is summed inside the products instead of after them.

Autograd's own graph makes two more passes over each output, to scale and to add, two over each input's gradient, and
keeps a dequantised W where the layer is quantised; here each sum is part of a matrix product, and W is asked for once
forward and once backward. The products with the W stay apart: stacking them would cost a copy of the gradients, which
arrive apart. SmolLM2-135M, 352 tokens, rank 16, bf16 with AMX on 2 threads, forward and back: gate and up 2.8 ms
together, 3.3 one by one, 3.6 as autograd has it; q, k and v 2.0, 2.5 and 2.4; a whole step 5 % less [`MEASURED.md`].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from graftline.kernels.nf4 import Nf4, nf4_linear, nf4_linear_backward
from graftline.kernels.twin import blocks, compiled, jit, precision, ranks_tile, tile, tl

Weight = Callable[[], Tensor] | Nf4
"""W [out, in]: quantised, or what gives it in the dtype of x: the layer's own, or dequantised on the spot."""


@dataclass(frozen=True)
class LoraLayer:
    """A frozen layer and its LoRA.

    Args:
        weight: W; it gets no gradient.
        bias: [out], or None; no gradient.
        a: [rank, in]; `b`: [out, rank], both in the dtype of x.
        scale: s.
    """

    weight: Weight
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float


def lora_linear(x: Tensor, layers: Sequence[LoraLayer]) -> tuple[Tensor, ...]:
    """The layers' outputs for one input; x, the a and the b get gradients.

    Args:
        x: [..., in].
        layers: ranks, scales and outputs may differ.
    """
    factors = [factor for layer in layers for factor in (layer.a, layer.b)]
    outputs: tuple[Tensor, ...] = _LoraLinear.apply(x, tuple(layers), *factors)
    return outputs


def frozen_linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """A frozen layer alone; x gets a gradient, and W is not kept for it.

    Args:
        x: [..., in].
        weight: W.
        bias: [out], or None.
    """
    output: Tensor = _FrozenLinear.apply(x, weight, bias)
    return output


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: tuple[LoraLayer, ...], *factors: Tensor) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        a, b = factors[::2], factors[1::2]
        outputs: list[Tensor] = []
        lows: list[Tensor] = []
        if _fused(rows, a):
            for layer, own_a, own_b in zip(layers, a, b, strict=True):
                output = _frozen(rows, layer.weight, layer.bias)
                lows.append(add_low_rank_triton(output, rows, own_a, own_b, layer.scale))
                outputs.append(output.view(*x.shape[:-1], -1))
        else:
            lows = [*linear(rows, _joined(a)).split([len(each) for each in a], 1)]
            for layer, low, own_b in zip(layers, lows, b, strict=True):
                outputs.append(_forward(rows, layer, low, own_b).view(*x.shape[:-1], -1))
        ctx.save_for_backward(rows, *lows, *factors)
        ctx.layers, ctx.shape = layers, x.shape
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.layers)
        rows, lows, factors = ctx.saved_tensors[0], ctx.saved_tensors[1 : count + 1], ctx.saved_tensors[count + 1 :]
        for_x, for_factors = ctx.needs_input_grad[0], ctx.needs_input_grad[2:]
        found: list[Tensor | None] = [None] * len(factors)
        parts, used = [], []
        for index, (layer, gradient) in enumerate(zip(ctx.layers, gradients, strict=True)):
            if gradient is None:  # this output is in no loss
                continue
            gradient = gradient.reshape(-1, gradient.shape[-1])
            if for_factors[2 * index + 1]:
                # Not gradientᵀ low: 203 µs instead of 113 for [370, 1536] and rank 16, in fp32 with AVX2 [measured].
                found[2 * index + 1] = (lows[index].t() @ gradient).mul_(layer.scale).t()
            if for_x or for_factors[2 * index]:
                parts.append((gradient @ factors[2 * index + 1]).mul_(layer.scale))
                used.append((index, gradient))
        if not parts:
            return None, None, *found
        of_low, ranks = _joined(parts, 1), [part.shape[1] for part in parts]
        if any(for_factors[2 * index] for index, _ in used):
            for (index, _), of_a in zip(used, (of_low.t() @ rows).split(ranks), strict=True):
                found[2 * index] = of_a if for_factors[2 * index] else None
        of_x = None
        if for_x:
            of_x = of_low @ _joined([factors[2 * index] for index, _ in used])
            for index, gradient in used:
                _add_backward(of_x, gradient, ctx.layers[index].weight)
            of_x = of_x.view(ctx.shape)
        return of_x, None, *found


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.shape = weight, x.shape
        rows = x.reshape(-1, x.shape[-1])
        return _frozen(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        rows, weight = gradient.reshape(-1, gradient.shape[-1]), ctx.weight
        of_x = nf4_linear_backward(rows, weight) if isinstance(weight, Nf4) else rows @ weight()
        return of_x.view(ctx.shape), None, None


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim)


ROWS = 512
"""Rows of a product on a CPU. With some more of them than the weight is wide, oneDNN uses one thread of two: in bf16
[1024, 1536] by [1536, 576] takes 1.75 ms, and 512 rows 0.47 [measured]; 576 to 1,152 rows are slow so."""


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Rows to multiply at a time, in blocks of like size."""
    count = -(-len(rows) // ROWS) if rows.device.type == "cpu" else 1
    for index in range(count):
        yield slice(len(rows) * index // count, len(rows) * (index + 1) // count)


def _frozen(rows: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    if isinstance(weight, Nf4):
        return nf4_linear(rows, weight, bias)
    held = weight()
    if len(rows) <= ROWS:
        return linear(rows, held, bias)
    return torch.cat([linear(rows[own], held, bias) for own in row_blocks(rows)])


def _forward(rows: Tensor, layer: LoraLayer, low: Tensor, b: Tensor) -> Tensor:
    if isinstance(layer.weight, Nf4):
        return nf4_linear(rows, layer.weight, layer.bias, low, b, layer.scale)
    weight = layer.weight()
    output = rows.new_empty(len(rows), len(weight))
    for own in row_blocks(rows):
        if layer.bias is None:
            torch.mm(rows[own], weight.t(), out=output[own])
        else:
            torch.addmm(layer.bias, rows[own], weight.t(), out=output[own])
        output[own].addmm_(low[own], b.t(), alpha=layer.scale)
    return output


def _add_backward(of_x: Tensor, gradient: Tensor, weight: Weight) -> None:
    if isinstance(weight, Nf4):
        of_x.add_(nf4_linear_backward(gradient, weight))
        return
    held = weight()
    for own in row_blocks(of_x):
        of_x[own].addmm_(gradient[own], held)


FUSED_ROWS, FUSED_RANK = 16, 128
"""Up to so many rows and ranks both low-rank products are one launch. Not measured yet: where few rows leave a GPU
idle, launches cost more than the products do, and each program repeats the first one."""


def _fused(rows: Tensor, a: Sequence[Tensor]) -> bool:
    return compiled(rows) and len(rows) <= FUSED_ROWS and max(len(each) for each in a) <= FUSED_RANK


def add_low_rank(output: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Add scale · (x aᵀ) bᵀ to the output, in place; answers with x aᵀ [rows, rank].

    Args:
        output: [rows, out]; `x`: [rows, in]; `a`: [rank, in]; `b`: [out, rank].
        scale: s.
    """
    low = linear(x, a)
    output.addmm_(low, b.t(), alpha=scale)
    return low


def add_low_rank_triton(output: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`add_low_rank` in one launch."""
    (rows, out), (rank, into) = output.shape, a.shape
    low = torch.empty(rows, rank, dtype=x.dtype, device=x.device)
    size, columns = tile(rows, most=64), tile(out)
    _add_low_rank[(blocks(rows, size), blocks(out, columns))](
        *(output, x, a, b, low, scale, rows, out, into, rank),
        *(*output.stride(), *x.stride(), *a.stride(), *b.stride()),
        RANKS=ranks_tile(rank), ROWS=size, COLUMNS=columns, DEPTH=64, PRECISION=precision(x),
    )  # fmt: skip
    return low


@jit
def _add_low_rank(  # type: ignore[no-untyped-def]
    output, x, a, b, low, scale, rows, out, into, ranks,
    output_row, output_column, x_row, x_column, a_rank, a_column, b_column, b_rank,
    RANKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    rank = tl.arange(0, RANKS)
    here, there, inside = row < rows, column < out, rank < ranks
    total = tl.zeros((ROWS, RANKS), tl.float32)
    for start in range(0, into, DEPTH):
        deep = start + tl.arange(0, DEPTH)
        reached = deep < into
        place = x + row[:, None] * x_row + deep[None, :] * x_column
        given = tl.load(place, mask=here[:, None] & reached[None, :], other=0.0)
        place = a + rank[None, :] * a_rank + deep[:, None] * a_column
        factor = tl.load(place, mask=reached[:, None] & inside[None, :], other=0.0)
        total += tl.dot(given, factor, input_precision=PRECISION)
    narrow = total.to(low.dtype.element_ty)
    if tl.program_id(1) == 0:
        tl.store(low + row[:, None] * ranks + rank[None, :], narrow, mask=here[:, None] & inside[None, :])
    place = b + column[None, :] * b_column + rank[:, None] * b_rank
    factor = tl.load(place, mask=inside[:, None] & there[None, :], other=0.0)
    place = output + row[:, None] * output_row + column[None, :] * output_column
    mask = here[:, None] & there[None, :]
    added = scale * tl.dot(narrow, factor, input_precision=PRECISION)
    tl.store(place, (tl.load(place, mask=mask).to(tl.float32) + added).to(output.dtype.element_ty), mask=mask)
