"""Attention for continuous batching on a CPU: every request attends to itself, by itself.

transformers packs all requests into one row and, on a CPU, masks them apart, so that work grows with the square of
the number of requests: 28 requests of 115 tokens ran at 0.70 (fp32) and 0.73 (bf16) of plain generation's speed, with
this function at 1.0 of it [measured on 1 thread, SmolLM2-135M, answers of equal length, where batching gains nothing].
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from graftline.stages.lm.packed_attention import attend

NAME = "graftline_segments"


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
            where each request's tokens end.
    """
    if cache is None and kwargs.get("position_ids") is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if cache is None:
        return attend(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    layer: Any = module
    key, value = cache.update(key_states=key, value_states=value, layer_idx=layer.layer_idx, kwargs=kwargs)
    heads, size = query.shape[1], query.shape[3]
    key_heads = key.shape[1]
    output = query.new_empty(1, query.shape[2], heads, size)
    query_ends, key_ends = kwargs["cu_seq_lens_q"].tolist(), kwargs["cu_seq_lens_k"].tolist()
    for request in range(len(query_ends) - 1):
        start, end = query_ends[request : request + 2]
        first, last = key_ends[request : request + 2]
        keys, values = key[:, :, first:last], value[:, :, first:last]
        new, all_ = end - start, last - first
        if new == 1:  # heads that share keys become rows of one product, so that no key is copied
            one = query[:, :, start].view(1, key_heads, heads // key_heads, size)
            output[0, start] = scaled_dot_product_attention(one, keys, values, scale=scaling).reshape(heads, size)
            continue
        mask = None if new == all_ else torch.ones(new, all_, dtype=torch.bool).tril(all_ - new)
        attended = scaled_dot_product_attention(
            query[:, :, start:end], keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        output[0, start:end] = attended[0].transpose(0, 1)
    return output, None


AttentionInterface.register(NAME, segment_attention)
