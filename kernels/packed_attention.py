"""Causal attention over packed sequences, each by itself: softmax(s · q kᵀ) v, forward and backward.

On a CPU `scaled_dot_product_attention` masks packed sequences apart, so that work grows with the square of the pack,
and its backward pass is slow where sequences are short. Here sequences of like length are padded to one another and
multiplied as batches, with heads that share keys as rows of one product. Forward and backward of one layer of
SmolLM2-135M on one thread, ms of processor time [measured]:

                              bf16 with AMX                    fp32
    tokens                    here  sdpa masked  one by one    here  sdpa one by one
    8 × 44                     1.7          9.2        15.2     1.8              6.8
    8 × 30 … 60                1.9         11.7        15.2     2.8
    60, 64, 70 … 140, 200      7.1         43.6        30.2    12.6
    25, 40, 61 … 310, 390     25.2                     92.6    46.0             68.6
    1 × 512                    7.1         17.1        15.8    16.3
    1 × 1024                  34.9                     40.9

There is no Triton twin: on a GPU attention is left to torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

LONGEST = {torch.bfloat16: 1024, torch.float32: 256}
"""Tokens of a sequence up to which batched products win over sdpa, with a backward pass [measured]. In fp32 sdpa has
nothing to convert: 16.4 ms here and 13.0 there for 2 × 256."""
LONGEST_FORWARD = 64
"""The same without one: 1.0 against 1.4 ms for 8 × 44, 1.35 against 1.16 for 4 × 128, in bf16 [measured]."""
BLOCK = 256
"""Queries of a longer sequence are cut into blocks of so many, which are not multiplied with the keys after them: 8.8
ms instead of 11.9 for 1 × 512. With smaller ones 60 … 200 takes 9.8 ms instead of 9.1 [measured]."""
WIDTH = 16
"""Keys are padded to a multiple of this, because a softmax is slow at the end of an odd row: 1.9 ms instead of 2.4 for
8 × 30 … 60 [measured]."""
GROUP, TOKEN = 13000, 24
"""What one more batch costs, and one more padded token, in units of one score of every head: about 0.8 ms, 1.5 µs and
0.06 µs [measured]."""


def packed_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """What every token sees of its own sequence up to itself.

    Args:
        query: [tokens, heads, size]; `key` and `value`: [tokens, key heads, size].
        lengths: of the sequences, in order.
        scale: s.

    Returns:
        [tokens, heads, size].
    """
    trained = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    most = LONGEST.get(query.dtype, LONGEST[torch.float32]) if trained else LONGEST_FORWARD
    short = [length for length in lengths if length <= most]
    if len(short) == len(lengths):
        return short_attention(query, key, value, short, scale)
    parts = [each.split(list(lengths)) for each in (query, key, value)]
    outputs: list[Tensor | None] = [None] * len(lengths)
    for place, (q, k, v) in enumerate(zip(*parts, strict=True)):
        if len(q) > most:
            q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
            attended = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
            outputs[place] = attended[0].transpose(0, 1)
    if short:
        places = [place for place, output in enumerate(outputs) if output is None]
        q, k, v = (torch.cat([each[place] for place in places]) for each in parts)
        for place, output in zip(places, short_attention(q, k, v, short, scale).split(short), strict=True):
            outputs[place] = output
    return torch.cat([output for output in outputs if output is not None])


def short_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """`packed_attention` by batched products alone."""
    groups = _groups(tuple(lengths), query.shape[1], key.shape[1], query.dtype, query.device)
    output: Tensor = _Short.apply(query, key, value, groups, scale)
    return output


@dataclass(frozen=True)
class _Block:
    """Some places of a group's queries; they see keys 0 to `end`.

    Args:
        queries: which row of [tokens × heads, size] stands where in [batch, query heads a key head × places, size].
        padding: places of padding among them; None where there is none.
        mask: [1, query heads a key head × places, end], −∞ where a token does not see another.
    """

    end: int
    queries: Tensor
    padding: Tensor | None
    mask: Tensor


@dataclass(frozen=True)
class _Group:
    """Sequences that are padded to one length.

    Args:
        batch: sequences × key heads.
        blocks: of queries, one after another.
        keys: which row of [tokens × key heads, size] stands where in [batch, places, size].
        own: rows of [tokens × heads, size] which the group's queries are, and `back`: their places among all blocks'.
        key_own, key_back: the same of the keys.
    """

    batch: int
    blocks: tuple[_Block, ...]
    keys: Tensor
    own: Tensor
    back: Tensor
    key_own: Tensor
    key_back: Tensor


class _Short(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: Sequence[_Group], scale: float) -> Tensor:
        size = query.shape[-1]
        q, k, v = (each.reshape(-1, size) for each in (query, key, value))
        output = torch.empty_like(q) if len(groups) > 1 else q
        saved = []
        for group in groups:
            ks, vs = (each.index_select(0, group.keys).view(group.batch, -1, size) for each in (k, v))
            saved += [ks, vs]
            seen = []
            for block in group.blocks:
                # The scale goes on the queries, which are fewer numbers than the scores.
                qs = q.index_select(0, block.queries).mul_(scale).view(group.batch, -1, size)
                share = torch.baddbmm(block.mask, qs, ks[:, : block.end].transpose(1, 2)).softmax(-1)
                seen.append(torch.bmm(share, vs[:, : block.end]).view(-1, size))
                saved += [qs, share]
            output = _put(output, group.own, _joined(seen).index_select(0, group.back), len(groups))
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.scale, ctx.shapes = groups, scale, (query.shape, key.shape, value.shape)
        return output.view(query.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        size = gradient.shape[-1]
        gradient = gradient.reshape(-1, size)
        saved = iter(ctx.saved_tensors)
        several = len(ctx.groups)
        of_q, of_k, of_v = (gradient.new_empty(shape if several > 1 else 0).view(-1, size) for shape in ctx.shapes)
        for group in ctx.groups:
            ks, vs = next(saved), next(saved)
            of_ks, of_vs = (torch.zeros_like(each) if len(group.blocks) > 1 else each for each in (ks, vs))
            of_qs = []
            for block in group.blocks:
                qs, share = next(saved), next(saved)
                g = gradient.index_select(0, block.queries)
                if block.padding is not None:
                    g.index_fill_(0, block.padding, 0)
                g = g.view(group.batch, -1, size)
                of_share = torch.bmm(g, vs[:, : block.end].transpose(1, 2))
                of_score = torch._softmax_backward_data(of_share, share, -1, share.dtype)
                of_qs.append(torch.bmm(of_score, ks[:, : block.end]).mul_(ctx.scale).view(-1, size))
                of_ks = _added(of_ks, block, of_score, qs, len(group.blocks))
                of_vs = _added(of_vs, block, share, g, len(group.blocks))
            of_q = _put(of_q, group.own, _joined(of_qs).index_select(0, group.back), several)
            of_k = _put(of_k, group.key_own, of_ks.view(-1, size).index_select(0, group.key_back), several)
            of_v = _put(of_v, group.key_own, of_vs.view(-1, size).index_select(0, group.key_back), several)
        of_query, of_key, of_value = (
            each.view(shape) for each, shape in zip((of_q, of_k, of_v), ctx.shapes, strict=True)
        )
        return of_query, of_key, of_value, None, None


def _put(whole: Tensor, places: Tensor, rows: Tensor, groups: int) -> Tensor:
    """A group's rows at their places; one group's are all there are."""
    return rows if groups == 1 else whole.index_copy_(0, places, rows)


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _added(whole: Tensor, block: _Block, left: Tensor, right: Tensor, blocks: int) -> Tensor:
    """leftᵀ right, added to the keys that a block sees."""
    product = torch.bmm(left.transpose(1, 2), right)
    if blocks == 1:
        return product
    whole[:, : block.end] += product
    return whole


@functools.lru_cache(maxsize=4)  # all layers of a pass ask for the same
def _groups(
    lengths: tuple[int, ...], heads: int, key_heads: int, dtype: torch.dtype, device: torch.device
) -> tuple[_Group, ...]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return tuple(
        _group([(starts[place], lengths[place]) for place in places], heads, key_heads, dtype, device)
        for places in _alike(lengths)
    )


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places of the sequences of each group: of all ways to cut the sequences, sorted by length, the cheapest."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    cheapest: list[tuple[float, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        each = TOKEN * longest + sum((last - first) * last for first, last in _cuts(longest))
        cheapest.append(min((cheapest[start][0] + GROUP + (end - start) * each, start) for start in range(end)))
    groups, end = [], len(order)
    while end:
        start = cheapest[end][1]
        groups.append(sorted(order[start:end]))
        end = start
    return groups


def _cuts(length: int) -> list[tuple[int, int]]:
    """Starts and ends of blocks of like size, none above BLOCK."""
    count = -(-length // BLOCK)
    return [(length * index // count, length * (index + 1) // count) for index in range(count)]


def _group(
    spans: Sequence[tuple[int, int]], heads: int, key_heads: int, dtype: torch.dtype, device: torch.device
) -> _Group:
    """One group of sequences, each a start and a length."""
    longest = max(length for _, length in spans)
    width = -(-longest // WIDTH) * WIDTH
    start, length = torch.tensor(spans).T[..., None]  # [sequences, 1] each
    place = torch.arange(width)[None]
    inside = place < length  # [sequences, width]
    token = start + torch.minimum(place, length - 1)

    def rows(count: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Which row stands where, and whether it is a token."""
        head = torch.arange(count)[None, :, None]
        row = token[:, None, first:last] * count + head
        return row.reshape(-1), inside[:, None, first:last].expand(-1, count, -1).reshape(-1)

    def way_back(row: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        own, order = row[real].sort()
        return own.to(device), real.nonzero().view(-1)[order].to(device)

    blocks, placed = [], []
    for first, last in _cuts(longest):
        row, real = rows(heads, first, last)
        placed.append((row, real))
        end = width if last == longest else last
        seen = torch.ones(longest, end, dtype=torch.bool).tril()[first:last].repeat(heads // key_heads, 1)
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)[None]
        padding = None if bool(real.all()) else (~real).nonzero().view(-1).to(device)
        blocks.append(_Block(end, row.to(device), padding, mask.to(device)))
    keys = rows(key_heads, 0, width)
    back = way_back(*(torch.cat(each) for each in zip(*placed, strict=True)))
    return _Group(len(spans) * key_heads, tuple(blocks), keys[0].to(device), *back, *way_back(*keys))
