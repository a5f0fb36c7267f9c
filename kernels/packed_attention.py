"""Causal attention over packed sequences, each by itself: softmax(s · q kᵀ) v, forward and backward.

On a CPU `scaled_dot_product_attention` masks packed sequences apart, so that work grows with the square of the pack,
and its backward pass is slow where sequences are short. Here sequences of like length are padded to one another and
multiplied as batches, with heads that share keys as rows of one product. Sequences that begin with the same tokens may
be given them once: a segment's tokens see those of the segments before it, and what flows back to these is summed.
Forward and backward of one layer of SmolLM2-135M on one thread, ms of processor time [measured]:

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

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


@dataclass(frozen=True)
class Segment:
    """Tokens of one sequence that stand together.

    Args:
        start: the first of them; `length`: how many.
        before: (first token, how many) of what stands elsewhere and comes before them, in order.
    """

    start: int
    length: int
    before: tuple[tuple[int, int], ...] = ()

    @property
    def earlier(self) -> int:
        """Tokens before its own."""
        return sum(length for _, length in self.before)

    def sequence(self) -> list[int]:
        """All its tokens, those before it first."""
        spans = (*self.before, (self.start, self.length))
        return [token for start, length in spans for token in range(start, start + length)]


def packed_attention(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scale: float) -> Tensor:
    """What every token sees of its own sequence up to itself.

    Args:
        query: [tokens, heads, size]; `key` and `value`: [tokens, key heads, size].
        segments: the tokens, one after another.
        scale: s.

    Returns:
        [tokens, heads, size].
    """
    trained = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    most = LONGEST.get(query.dtype, LONGEST[torch.float32]) if trained else LONGEST_FORWARD
    short = [segment for segment in segments if segment.length <= most]
    if len(short) == len(segments):
        return short_attention(query, key, value, short, scale)
    lengths = [segment.length for segment in segments]
    parts = zip(*(each.split(lengths) for each in (query, key, value)), strict=True)
    attended: Iterator[Tensor] = iter(())
    if short:
        attended = iter(short_attention(query, key, value, short, scale).split([each.length for each in short]))
    outputs = []
    for segment, (q, k, v) in zip(segments, parts, strict=True):
        if segment.length <= most:
            outputs.append(next(attended))
        else:
            keys = [key[start : start + length] for start, length in segment.before]
            values = [value[start : start + length] for start, length in segment.before]
            outputs.append(_long(q, _joined([*keys, k]), _joined([*values, v]), scale))
    return torch.cat(outputs)


def _long(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """One segment by sdpa, its own keys last."""
    earlier, mask = len(key) - len(query), None
    if earlier:
        mask = torch.ones(len(query), len(key), dtype=torch.bool, device=query.device).tril_(earlier)
    q, k, v = (each.transpose(0, 1)[None] for each in (query, key, value))
    attended = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=True)
    return attended[0].transpose(0, 1)


def short_attention(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scale: float) -> Tensor:
    """`packed_attention` of some segments by batched products alone, theirs one after another."""
    plan = _planned(tuple(segments), query.shape[1], key.shape[1], len(query), query.dtype, query.device)
    output: Tensor = _Short.apply(query, key, value, plan, scale)
    return output


@dataclass(frozen=True)
class _Block:
    """Some places of a group's queries; they see keys 0 to `end`.

    Args:
        queries: which row of [tokens × heads, size] stands where in [batch, query heads a key head × places, size].
        padding: places of padding among them; None where there is none.
        mask: [batch or 1, query heads a key head × places, end], −∞ where a token does not see another.
    """

    end: int
    queries: Tensor
    padding: Tensor | None
    mask: Tensor


@dataclass(frozen=True)
class _Group:
    """Segments that are padded to one length.

    Args:
        batch: segments × key heads.
        blocks: of queries, one after another.
        keys: which row of [tokens × key heads, size] stands where in [batch, places, size].
    """

    batch: int
    blocks: tuple[_Block, ...]
    keys: Tensor


@dataclass(frozen=True)
class _Plan:
    """All groups, and the way back from them.

    Args:
        back: at which of all blocks' places the rows [segments' tokens × heads, size] stand, in order.
        own: the rows of [tokens × heads, size] that they are; None: all, in order.
        key_back: at which of all groups' places the rows [tokens × key heads, size] stand, a row's after another's.
        key_starts: where each row's begin; None: each stands at one place.
    """

    groups: tuple[_Group, ...]
    back: Tensor
    own: Tensor | None
    key_back: Tensor
    key_starts: Tensor | None


class _Short(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: _Plan, scale: float) -> Tensor:
        size = query.shape[-1]
        q, k, v = (each.reshape(-1, size) for each in (query, key, value))
        saved, seen = [], []
        for group in plan.groups:
            ks, vs = (each.index_select(0, group.keys).view(group.batch, -1, size) for each in (k, v))
            saved += [ks, vs]
            for block in group.blocks:
                # The scale goes on the queries, which are fewer numbers than the scores.
                qs = q.index_select(0, block.queries).mul_(scale).view(group.batch, -1, size)
                share = torch.baddbmm(block.mask, qs, ks[:, : block.end].transpose(1, 2)).softmax(-1)
                seen.append(torch.bmm(share, vs[:, : block.end]).view(-1, size))
                saved += [qs, share]
        ctx.save_for_backward(*saved)
        ctx.plan, ctx.scale, ctx.shapes = plan, scale, (query.shape, key.shape, value.shape)
        return _joined(seen).index_select(0, plan.back).view(-1, *query.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan, size = ctx.plan, gradient.shape[-1]
        gradient = gradient.reshape(-1, size)
        if plan.own is not None:
            gradient = gradient.new_zeros(ctx.shapes[0]).view(-1, size).index_copy_(0, plan.own, gradient)
        saved = iter(ctx.saved_tensors)
        of_q, of_k, of_v = [], [], []
        for group in plan.groups:
            ks, vs = next(saved), next(saved)
            several = len(group.blocks) > 1
            of_ks, of_vs = (torch.zeros_like(each) if several else each for each in (ks, vs))
            for block in group.blocks:
                qs, share = next(saved), next(saved)
                g = gradient.index_select(0, block.queries)
                if block.padding is not None:
                    g.index_fill_(0, block.padding, 0)
                g = g.view(group.batch, -1, size)
                of_share = torch.bmm(g, vs[:, : block.end].transpose(1, 2))
                of_score = torch._softmax_backward_data(of_share, share, -1, share.dtype)
                of_q.append(torch.bmm(of_score, ks[:, : block.end]).mul_(ctx.scale).view(-1, size))
                of_ks = _added(of_ks, block, of_score, qs, several)
                of_vs = _added(of_vs, block, share, g, several)
            of_k.append(of_ks.view(-1, size))
            of_v.append(of_vs.view(-1, size))
        of_query = _joined(of_q).index_select(0, plan.back)
        if plan.own is not None:
            of_query = of_query.new_zeros(ctx.shapes[0]).view(-1, size).index_copy_(0, plan.own, of_query)
        of_key, of_value = (_summed(_joined(each), plan) for each in (of_k, of_v))
        found = zip((of_query, of_key, of_value), ctx.shapes, strict=True)
        return *(each.view(shape) for each, shape in found), None, None


def _summed(rows: Tensor, plan: _Plan) -> Tensor:
    """What flows back to each key, from wherever it stood."""
    if plan.key_starts is None:
        return rows.index_select(0, plan.key_back)
    return embedding_bag(plan.key_back, rows, plan.key_starts, mode="sum")


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _added(whole: Tensor, block: _Block, left: Tensor, right: Tensor, several: bool) -> Tensor:
    """leftᵀ right, added to the keys that a block sees."""
    product = torch.bmm(left.transpose(1, 2), right)
    if not several:
        return product
    whole[:, : block.end] += product
    return whole


@functools.lru_cache(maxsize=4)  # all layers of a pass ask for the same
def _planned(
    segments: tuple[Segment, ...], heads: int, key_heads: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> _Plan:
    groups, queries, keys = [], [], []
    for places in _alike(segments):
        group, stands, held = _group([segments[place] for place in places], heads, key_heads, dtype, device)
        groups.append(group)
        queries.append(stands)
        keys.append(held)
    own, back, _ = _way_back(torch.cat(queries), tokens * heads)
    _, key_back, starts = _way_back(torch.cat(keys), tokens * key_heads)
    whole = len(own) == tokens * heads
    once = torch.equal(starts, torch.arange(tokens * key_heads))
    return _Plan(
        tuple(groups),
        back.to(device),
        None if whole else own.to(device),
        key_back.to(device),
        None if once else starts.to(device),
    )


def _way_back(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows that stand somewhere (−1: padding): the rows, sorted, the places where they stand, and where each of
    all `count` rows begins among these."""
    places = (rows >= 0).nonzero().view(-1)
    own, order = rows[places].sort(stable=True)
    return own, places[order], torch.searchsorted(own, torch.arange(count))


def _alike(segments: Sequence[Segment]) -> list[list[int]]:
    """Places of the segments of each group: of all ways to cut them, sorted by length, the cheapest."""
    order = sorted(range(len(segments)), key=lambda place: segments[place].length)
    cheapest: list[tuple[float, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = segments[order[end - 1]].length
        own = TOKEN * longest + sum((last - first) * last for first, last in _cuts(longest))
        before, ways = 0, []
        for start in reversed(range(end)):
            before = max(before, segments[order[start]].earlier)
            each = own + before * (TOKEN + longest)
            ways.append((cheapest[start][0] + GROUP + (end - start) * each, start))
        cheapest.append(min(ways))
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
    segments: Sequence[Segment], heads: int, key_heads: int, dtype: torch.dtype, device: torch.device
) -> tuple[_Group, Tensor, Tensor]:
    """One group of segments, and which rows of the queries and of the keys stand at its places (−1: padding). What
    comes before a segment stands right before it, its padding first."""
    longest, before = (max(each) for each in zip(*((one.length, one.earlier) for one in segments), strict=True))
    width = -(-(before + longest) // WIDTH) * WIDTH
    starts = before - torch.tensor([segment.earlier for segment in segments])
    token = torch.zeros(len(segments), width, dtype=torch.long)
    inside = torch.zeros(len(segments), width, dtype=torch.bool)
    for index, segment in enumerate(segments):
        here = slice(before - segment.earlier, before + segment.length)
        token[index, here] = torch.tensor(segment.sequence())
        inside[index, here] = True

    def rows(count: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Which row stands where, and which where there is no padding."""
        row = token[:, None, first:last] * count + torch.arange(count)[None, :, None]
        real = inside[:, None, first:last].expand(-1, count, -1)
        return row.reshape(-1), torch.where(real, row, -1).reshape(-1)

    blocks, queries = [], []
    for first, last in _cuts(longest):
        row, stands = rows(heads, before + first, before + last)
        queries.append(stands)
        end = width if last == longest else before + last
        seen = torch.ones(last - first, end, dtype=torch.bool).tril(before + first)[None]
        if bool(starts.any()):
            seen = (seen & (torch.arange(end) >= starts[:, None, None])).repeat_interleave(key_heads, 0)
        seen = seen.repeat(1, heads // key_heads, 1)
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
        padding = None if bool((stands >= 0).all()) else (stands < 0).nonzero().view(-1).to(device)
        blocks.append(_Block(end, row.to(device), padding, mask.to(device)))
    row, held = rows(key_heads, 0, width)
    return _Group(len(segments) * key_heads, tuple(blocks), row.to(device)), torch.cat(queries), held
