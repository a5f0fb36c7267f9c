"""Many LoRA adapters in one batch: every token gets its own adapter's update, `y[t] += g[t] · s · B (A x[t])`; or those
of several, each by its gate, as a mixture of adapters has it. The factors, the gates and x get gradients, so that jobs
with adapters of their own train in one batch.

The reference groups tokens by adapter once a step (`segment`, `mixture`), and every layer does two small products a
group; ranks and scales may differ, and the base's tokens cost nothing. The twin does them in two launches, whatever the
number of adapters: from the inputs to the ranks, and from the ranks to the outputs; the factors are found through a
table of their addresses. What flows back takes the same two, with A and B changed over.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftline.kernels.twin import blocks, compiled, jit, precision, ranks_tile, tile, tl

BASE = -1
"""The slot of a token without an adapter."""


@dataclass(frozen=True)
class Factors:
    """One layer's part of one adapter: `a` [rank, in], `b` [out, rank], and the scale of their product."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class Segment:
    """The tokens of one adapter: a slice where they lie together, else their positions; and by what its update of each
    is multiplied (None: by 1)."""

    slot: int
    tokens: slice | Tensor
    gates: Tensor | None = None


def segment(slots: Sequence[int], device: torch.device | str = "cpu") -> tuple[Segment, ...]:
    """Group tokens by adapter.

    Args:
        slots: one slot a token; `BASE` = none.
        device: where the positions are needed.
    """
    tokens: dict[int, list[int]] = {}
    for position, slot in enumerate(slots):
        if slot != BASE:
            tokens.setdefault(slot, []).append(position)
    return tuple(Segment(slot, _compact(positions, device)) for slot, positions in sorted(tokens.items()))


def mixture(chosen: Tensor, gates: Tensor) -> tuple[Segment, ...]:
    """Group the choices of a router by adapter.

    Args:
        chosen: [tokens, choices] slots; `BASE` = none.
        gates: [tokens, choices] what each choice's update is multiplied by; they get gradients.
    """
    order = chosen.reshape(-1).argsort(stable=True)
    slots, counts = chosen.reshape(-1)[order].unique_consecutive(return_counts=True)
    parts = zip(slots.tolist(), order.split(counts.tolist()), strict=True)
    flat = gates.reshape(-1)
    return tuple(Segment(slot, part // chosen.shape[1], flat[part]) for slot, part in parts if slot != BASE)


def grouped_lora(output: Tensor, x: Tensor, factors: Mapping[int, Factors], segments: Sequence[Segment]) -> Tensor:
    """Add every token's update to a linear layer's output, in place.

    Args:
        output: [tokens, out], the layer's own; returned.
        x: [tokens, in], its input.
        factors: slot → this layer's factors, in the dtype of `x`; an adapter that leaves the layer alone is absent.
        segments: of these tokens.
    """
    used = [each for each in segments if each.slot in factors]
    if not used:
        return output
    own = [factors[each.slot] for each in used]
    tensors = [tensor for each, factor in zip(used, own, strict=True) for tensor in (factor.a, factor.b, each.gates)]
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (output, x, *tensors)):
        scales = [factor.scale for factor in own]
        added: Tensor = _GroupedLora.apply(output, x, [each.tokens for each in used], scales, *tensors)
        return added
    _expand(output, _shrink(x, used, own, True), used, own, True)
    return output


STACKED = 256
"""Ranks of all adapters together up to which a CPU multiplies with all of them at once and sets most to zero, instead
of two small products for each adapter. Where that stops paying is not measured yet."""


@dataclass(frozen=True)
class Stack:
    """Several adapters' parts of one layer as one.

    Args:
        a: [ranks, in]; `b`: [ranks, out].
        scales: [ranks].
        ranks: slot → how many are its own, in order.
    """

    a: Tensor
    b: Tensor
    scales: Tensor
    ranks: Mapping[int, int]


def stack(factors: Mapping[int, Factors]) -> Stack | None:
    """Some adapters as one; None where they are fewer than two, or have more ranks than pays, and on a GPU."""
    own = list(factors.values())
    if len(own) < 2 or sum(len(each.a) for each in own) > STACKED or compiled(own[0].a):
        return None
    a, b = torch.cat([each.a for each in own]), torch.cat([each.b.t() for each in own])
    scales = torch.cat([each.a.new_full((len(each.a),), each.scale) for each in own])
    return Stack(a, b, scales, {slot: len(each.a) for slot, each in factors.items()})


def others(slots: Sequence[int], ranks: Mapping[int, int]) -> Tensor:
    """Which ranks of a stack are not those of a token's own adapter: [tokens, ranks].

    Args:
        slots: of the tokens.
    """
    owners = torch.tensor([slot for slot, count in ranks.items() for _ in range(count)])
    return torch.tensor(slots)[:, None] != owners


def stacked_lora(output: Tensor, x: Tensor, stacked: Stack, not_own: Tensor) -> Tensor:
    """`grouped_lora` of adapters that are stacked, without gradients: two products, and not two for each adapter.

    Args:
        output: [tokens, out], the layer's own; returned.
        x: [tokens, in], its input.
        not_own: what `others` says of these tokens. It is set to zero, whatever it is: a token never sees what another
            adapter would make of it.
    """
    low = (x @ stacked.a.t()).mul_(stacked.scales).masked_fill_(not_own, 0)
    return output.addmm_(low, stacked.b)


class _GroupedLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, tokens: list[slice | Tensor], scales: list[float], *tensors: Tensor | None
    ) -> Tensor:
        used, own = _grouped(tokens, scales, tensors)
        lows = _shrink(x, used, own, True)
        _expand(output, lows, used, own, True)
        ctx.mark_dirty(output)
        ctx.save_for_backward(x, *lows, *tensors)
        ctx.tokens, ctx.scales = tokens, scales
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.tokens)
        x, lows, tensors = ctx.saved_tensors[0], ctx.saved_tensors[1 : count + 1], ctx.saved_tensors[count + 1 :]
        used, own = _grouped(ctx.tokens, ctx.scales, tensors)
        of_lows = _shrink(gradient, used, own, False)
        found: list[Tensor | None] = []
        needed = ctx.needs_input_grad[4:]
        for index, (each, factor, low, of_low) in enumerate(zip(used, own, lows, of_lows, strict=True)):
            of_a, of_b, of_gates = needed[3 * index : 3 * index + 3]
            weight = factor.scale if each.gates is None else (factor.scale * each.gates)[:, None].to(low.dtype)
            found.append((of_low * weight).t() @ x[each.tokens] if of_a else None)
            found.append(gradient[each.tokens].t() @ (low * weight) if of_b else None)
            found.append((of_low.float() * low.float()).sum(1).mul_(factor.scale).to(each.gates) if of_gates else None)
        of_x = None
        if ctx.needs_input_grad[1]:
            of_x = torch.zeros_like(x)
            _expand(of_x, of_lows, used, own, False)
        return gradient, of_x, None, None, *found


def _grouped(
    tokens: Iterable[slice | Tensor], scales: Iterable[float], tensors: Sequence[Any]
) -> tuple[list[Segment], list[Factors]]:
    used = [Segment(0, each, gates) for each, gates in zip(tokens, tensors[2::3], strict=True)]
    parts = zip(tensors[::3], tensors[1::3], scales, strict=True)
    return used, [Factors(a, b, scale) for a, b, scale in parts]


def _compact(positions: list[int], device: torch.device | str) -> slice | Tensor:
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):
        return slice(first, last + 1)
    return torch.tensor(positions, device=device)


def _shrink(x: Tensor, used: Sequence[Segment], own: Sequence[Factors], forward: bool) -> list[Tensor]:
    """Each segment's tokens as ranks: A x, and on the way back Bᵀ gradient, without scale and gates."""
    if compiled(x):
        return shrink_triton(x, used, own, forward)
    return [x[each.tokens] @ (factor.a.t() if forward else factor.b) for each, factor in zip(used, own, strict=True)]


def _expand(
    output: Tensor, lows: Sequence[Tensor], used: Sequence[Segment], own: Sequence[Factors], forward: bool
) -> None:
    """Add each segment's ranks to its tokens: s g B low, and on the way back s g Aᵀ low."""
    if compiled(output):
        expand_triton(output, lows, used, own, forward)
        return
    for each, factor, low in zip(used, own, lows, strict=True):
        wide = factor.b.t() if forward else factor.a
        gated = low if each.gates is None else low * each.gates[:, None].to(low.dtype)
        if isinstance(each.tokens, slice):
            output[each.tokens].addmm_(gated, wide, alpha=factor.scale)
        else:
            output.index_add_(0, each.tokens, gated @ wide, alpha=factor.scale)


def shrink_triton(x: Tensor, used: Sequence[Segment], own: Sequence[Factors], forward: bool) -> list[Tensor]:
    """`_shrink` in one launch. Few tokens leave the GPU idle unless the sum over the inputs is split; the parts are
    then added in fp32 as they come."""
    order, starts, counts = _layout(used, x)
    addresses, ranks, _, most = _table(own, x, forward)
    size, depth = tile(max(counts), most=64), 64
    split = min(_SPLIT, blocks(x.shape[1], depth)) if len(order) <= _SPLIT_TOKENS else 1
    low = torch.zeros(len(order), most, dtype=torch.float32, device=x.device)
    _shrink_kernel[(blocks(max(counts), size), len(used), split)](
        *(x, addresses, ranks, order, starts, low, x.shape[1], most, *x.stride()),
        BY_RANK=forward, SPLIT=split, RANKS=ranks_tile(most), ROWS=size, DEPTH=depth, PRECISION=precision(x),
    )  # fmt: skip
    narrow = low.to(x.dtype).split(counts)
    return [each[:, : len(factor.a)] for each, factor in zip(narrow, own, strict=True)]


def expand_triton(
    output: Tensor, lows: Sequence[Tensor], used: Sequence[Segment], own: Sequence[Factors], forward: bool
) -> None:
    """`_expand` in one launch. Where gates say that a token may have several adapters, their updates are added in fp32
    as they come, and to the output at the end."""
    order, starts, counts = _layout(used, output)
    addresses, ranks, scales, most = _table(own, output, not forward)
    low = torch.zeros(len(order), most, dtype=output.dtype, device=output.device)
    for part, each in zip(low.split(counts), lows, strict=True):
        part[:, : each.shape[1]] = each
    mixed = any(each.gates is not None for each in used)
    gates = low.new_ones(len(order), dtype=torch.float32)
    if mixed:
        for gate, own_gates in zip(gates.split(counts), (each.gates for each in used), strict=True):
            if own_gates is not None:
                gate.copy_(own_gates)
    target = torch.zeros_like(output, dtype=torch.float32) if mixed else output
    size, columns = tile(max(counts), most=64), tile(output.shape[1])
    _expand_kernel[(blocks(max(counts), size), blocks(output.shape[1], columns), len(used))](
        *(target, low, addresses, ranks, scales, gates, order, starts, output.shape[1], most, *target.stride()),
        BY_RANK=not forward, ADDED=mixed, RANKS=ranks_tile(most), ROWS=size, COLUMNS=columns,
        PRECISION=precision(output),
    )  # fmt: skip
    if mixed:
        output.add_(target)


_SPLIT, _SPLIT_TOKENS = 8, 128
"""Not measured yet: the sum over the inputs is split where so few tokens fill no GPU."""


def _layout(used: Sequence[Segment], x: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The tokens segment by segment, where each segment starts, and how many it has."""
    every = torch.arange(len(x), device=x.device)
    tokens = [every[each.tokens] for each in used]
    counts = [len(each) for each in tokens]
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], device=x.device)
    return torch.cat(tokens), starts, counts


def _table(own: Sequence[Factors], x: Tensor, by_rank: bool) -> tuple[Tensor, Tensor, Tensor, int]:
    """Where the factors lie, their ranks and scales, and the largest rank.

    Raises:
        ValueError: a factor's numbers do not lie together, or are of another dtype.
    """
    wanted = [each.a if by_rank else each.b for each in own]
    if not all(each.is_contiguous() and each.dtype == x.dtype for each in wanted):
        raise ValueError("factors must be contiguous and in the dtype of x")
    ranks = tuple(len(each.a) for each in own)
    key = tuple(each.data_ptr() for each in wanted), ranks, tuple(each.scale for each in own)
    return *_table_of(*key, x.device), max(ranks)


@functools.lru_cache(maxsize=4096)
def _table_of(
    addresses: tuple[int, ...], ranks: tuple[int, ...], scales: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Adapters stay where they are between steps; then nothing is copied to the GPU."""
    return (
        torch.tensor(addresses, dtype=torch.int64, device=device),
        torch.tensor(ranks, dtype=torch.int32, device=device),
        torch.tensor(scales, dtype=torch.float32, device=device),
    )


@jit
def _shrink_kernel(  # type: ignore[no-untyped-def]
    x, addresses, ranks, order, starts, low, width, most, x_row, x_column,
    BY_RANK: tl.constexpr, SPLIT: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    adapter = tl.program_id(1)
    start = tl.load(starts + adapter)
    count = tl.load(starts + adapter + 1) - start
    if tl.program_id(0) * ROWS < count:
        place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        here = place < count
        token = tl.load(order + start + place, mask=here, other=0)
        factor = tl.load(addresses + adapter).to(tl.pointer_type(x.dtype.element_ty))
        own, rank = tl.load(ranks + adapter), tl.arange(0, RANKS)
        inside = rank < own
        total = tl.zeros((ROWS, RANKS), tl.float32)
        for first in range(tl.program_id(2) * DEPTH, width, SPLIT * DEPTH):
            deep = first + tl.arange(0, DEPTH)
            reached = deep < width
            given = x + token[:, None] * x_row + deep[None, :] * x_column
            if BY_RANK:
                narrow = factor + rank[None, :] * width + deep[:, None]
            else:
                narrow = factor + deep[:, None] * own + rank[None, :]
            total += tl.dot(
                tl.load(given, mask=here[:, None] & reached[None, :], other=0.0),
                tl.load(narrow, mask=reached[:, None] & inside[None, :], other=0.0),
                input_precision=PRECISION,
            )
        target = low + (start + place)[:, None] * most + rank[None, :]
        if SPLIT > 1:
            tl.atomic_add(target, total, mask=here[:, None] & inside[None, :])
        else:
            tl.store(target, total, mask=here[:, None] & inside[None, :])


@jit
def _expand_kernel(  # type: ignore[no-untyped-def]
    output, low, addresses, ranks, scales, gates, order, starts, width, most, output_row, output_column,
    BY_RANK: tl.constexpr, ADDED: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    adapter = tl.program_id(2)
    start = tl.load(starts + adapter)
    count = tl.load(starts + adapter + 1) - start
    if tl.program_id(0) * ROWS < count:
        place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        here, there = place < count, column < width
        token = tl.load(order + start + place, mask=here, other=0)
        factor = tl.load(addresses + adapter).to(tl.pointer_type(low.dtype.element_ty))
        own, rank = tl.load(ranks + adapter), tl.arange(0, RANKS)
        inside = rank < own
        narrow = low + (start + place)[:, None] * most + rank[None, :]
        if BY_RANK:
            wide = factor + rank[:, None] * width + column[None, :]
        else:
            wide = factor + column[None, :] * own + rank[:, None]
        update = tl.dot(
            tl.load(narrow, mask=here[:, None] & inside[None, :], other=0.0),
            tl.load(wide, mask=inside[:, None] & there[None, :], other=0.0),
            input_precision=PRECISION,
        )
        update *= tl.load(scales + adapter) * tl.load(gates + start + place, mask=here, other=0.0)[:, None]
        target = output + token[:, None] * output_row + column[None, :] * output_column
        mask = here[:, None] & there[None, :]
        if ADDED:
            tl.atomic_add(target, update, mask=mask)
        else:
            tl.store(
                target, (tl.load(target, mask=mask).to(tl.float32) + update).to(output.dtype.element_ty), mask=mask
            )
