"""Attention for continuous batching on a CPU: every request attends to itself, by itself.

transformers packs all requests into one row and, on a CPU, masks them apart, so that work grows with the square of
the number of requests: 28 requests of 115 tokens ran at 0.70 (fp32) and 0.73 (bf16) of plain generation's speed, with
this function at 1.0 of it [measured on 1 thread, SmolLM2-135M, answers of equal length, where batching gains nothing].

Requests that get one token more are padded to others of like length and multiplied as a batch. Their keys are read from
the pages in that layout at once, and heads are kept apart by zeros in the queries, so that no key is copied again. One
layer of 64 requests of 60 to 220 tokens takes 2.2 ms instead of the 4.0 of one request after another, in bf16 on one
thread, and the products use further threads, which one request is too small for [measured].
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from graftline.stages.lm.packed_attention import attend

NAME = "graftline_segments"
KEY_HEADS = 8
"""Of a layer, at most, for the batched product: keeping heads apart by zeros multiplies the work by their number."""
PADDING = 2048
"""Tokens of padding in a batch, at most: one batch more costs about as much as multiplying so many."""
WIDTH = 32
"""Keys are padded to a multiple of this, so that the products' shapes change only once in so many passes."""


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of packed requests over their paged cache; without one, of packed rows over themselves,
    if their positions are known.

    Args:
        query: [1, heads, tokens, size]; `key` and `value`: [1, key heads, tokens, size], of the new tokens.
        cache: continuous batching's, which adds the earlier ones; `cu_seq_lens_q` and `cu_seq_lens_k` in `kwargs` say
            where each request's tokens end, `read_index` which places of the pages are read.
    """
    if cache is None and kwargs.get("position_ids") is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if cache is None:
        return attend(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    layer: Any = module
    heads, size = query.shape[1], query.shape[3]
    key_heads = key.shape[1]
    output = query.new_empty(1, query.shape[2], heads, size)
    read = kwargs["read_index"]
    ends = (kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]["full_attention"])
    # Without earlier tokens nothing is read from the pages, and there is no order to change.
    batched = key_heads <= KEY_HEADS and all(each.numel() for each in read)
    plan = _plan(*(tuple(each.tolist()) for each in ends), batched, query.dtype)
    if plan.batches:
        kwargs["read_index"] = [each[plan.order] for each in read]
    key, value = cache.update(key_states=key, value_states=value, layer_idx=layer.layer_idx, kwargs=kwargs)
    for batch in plan.batches:
        new = query[0, :, batch.tokens].transpose(0, 1)
        own = slice(batch.first, batch.first + batch.mask.numel())
        keys, values = (
            each[0, :, own].transpose(0, 1).reshape(len(new), -1, key_heads * size) for each in (key, value)
        )
        output[0, batch.tokens] = _attend_to_batch(new, keys, values, batch.mask, scaling or size**-0.5, key_heads)
    for alone in plan.alone:
        keys, values = (each[:, :, alone.first : alone.first + alone.seen] for each in (key, value))
        new = query[:, :, alone.start : alone.start + alone.new]
        if alone.new == 1:  # heads that share keys become rows of one product, so that no key is copied
            one = new.reshape(1, key_heads, heads // key_heads, size)
            output[0, alone.start] = scaled_dot_product_attention(one, keys, values, scale=scaling).view(heads, size)
            continue
        mask = None
        if alone.new < alone.seen:
            mask = torch.ones(alone.new, alone.seen, dtype=torch.bool).tril(alone.seen - alone.new)
        attended = scaled_dot_product_attention(
            new, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        output[0, alone.start : alone.start + alone.new] = attended[0].transpose(0, 1)
    return output, None


@dataclass(frozen=True)
class _Alone:
    """A request that attends by itself: its new tokens begin at `start`, what they see at `first`."""

    start: int
    new: int
    first: int
    seen: int


@dataclass(frozen=True)
class _Batch:
    """Requests with one new token each, padded to the longest.

    Args:
        tokens: which new tokens are theirs.
        first: where what they see begins.
        mask: [requests, 1, longest], −∞ on padding.
    """

    tokens: torch.Tensor
    first: int
    mask: torch.Tensor


@dataclass(frozen=True)
class _Plan:
    """How a pass attends: `order` says which of the tokens read from the pages stands where."""

    order: torch.Tensor
    batches: tuple[_Batch, ...]
    alone: tuple[_Alone, ...]


@functools.lru_cache(maxsize=2)  # all layers of a pass ask the same
def _plan(query_ends: tuple[int, ...], key_ends: tuple[int, ...], batched: bool, dtype: torch.dtype) -> _Plan:
    new = [end - start for start, end in itertools.pairwise(query_ends)]
    seen = [end - start for start, end in itertools.pairwise(key_ends)]
    ones = [request for request in range(len(new)) if batched and new[request] == 1]
    groups = _groups(sorted(ones, key=lambda request: -seen[request]), seen)
    order, batches, alone, first = [], [], [], 0
    for group in groups:
        lengths = torch.tensor([seen[request] for request in group])[:, None]
        places = torch.arange(-(-seen[group[0]] // WIDTH) * WIDTH)
        starts = torch.tensor([key_ends[request] for request in group])[:, None]
        order.append((starts + torch.minimum(places, lengths - 1)).view(-1))
        mask = torch.zeros(len(group), 1, len(places), dtype=dtype)
        mask.masked_fill_((places >= lengths)[:, None], -torch.inf)
        batches.append(_Batch(torch.tensor([query_ends[request] for request in group]), first, mask))
        first += len(order[-1])
    chosen = set(ones)
    for request in range(len(new)):
        if request not in chosen:
            if groups:
                order.append(torch.arange(key_ends[request], key_ends[request + 1]))
            start = first if groups else key_ends[request]
            alone.append(_Alone(query_ends[request], new[request], start, seen[request]))
            first += seen[request]
    return _Plan(torch.cat(order) if order else torch.empty(0), tuple(batches), tuple(alone))


def _groups(requests: list[int], seen: list[int]) -> list[list[int]]:
    """Requests, longest first, cut where the padding would become too much."""
    groups: list[list[int]] = []
    padding = 0
    for request in requests:
        missing = seen[groups[-1][0]] - seen[request] if groups else 0
        if not groups or padding + missing > PADDING:
            groups.append([])
            padding = missing = 0
        groups[-1].append(request)
        padding += missing
    return groups


def _attend_to_batch(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float, key_heads: int
) -> torch.Tensor:
    """One token's attention in each request.

    Args:
        query: [requests, heads, size]; `keys` and `values`: [requests, longest, key heads × size].
    """
    requests, heads, size = query.shape
    apart = query.new_zeros(requests, key_heads, heads // key_heads, key_heads, size)
    own = query.view(requests, key_heads, heads // key_heads, size)
    apart.diagonal(dim1=1, dim2=3).copy_((own * scale).permute(0, 2, 3, 1))
    share = torch.baddbmm(mask, apart.view(requests, heads, -1), keys.transpose(1, 2)).softmax(-1)
    seen = torch.bmm(share, values).view(apart.shape).diagonal(dim1=1, dim2=3)
    return seen.permute(0, 3, 1, 2).reshape(requests, heads, size)


AttentionInterface.register(NAME, segment_attention)
