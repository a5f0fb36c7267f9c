"""Attention over packed rows on a CPU, as transformers' models ask for it: each row by itself, and no mask. Rows that
begin alike may have their common tokens once."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from graftline.kernels.packed_attention import Segment, packed_attention

NAME = "graftline_packed"
LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo2")
"""Types of model whose layers hand on the tokens' positions and attend to all that went before, no less."""


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Have a model attend by this file; answers whether it does. Other kinds of model stay as they are."""
    config: Any = model.config
    windows = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    plain = getattr(config, "is_causal", True) and not getattr(config, "attention_dropout", 0.0)
    if config.model_type not in LIKE_LLAMA or windows or not plain or config._attn_implementation != "sdpa":
        return False
    model.set_attn_implementation(NAME)
    return True


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Each sequence's attention over itself. With a mask or a cache, and on a GPU, it is transformers' own.

    Args:
        query: [rows, heads, tokens, size]; `key` and `value`: [rows, key heads, tokens, size].
        position_ids: [rows or 1, tokens]; `segments` tells what they say.
    """
    if attention_mask is not None or query.device.type != "cpu" or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if position_ids is None:
        raise ValueError("packed attention needs the tokens' positions, and this model's layers do not hand them on")
    rows, heads, tokens, size = query.shape
    query, key, value = (each.transpose(1, 2).reshape(rows * tokens, -1, size) for each in (query, key, value))
    scale = size**-0.5 if scaling is None else scaling
    output = packed_attention(query, key, value, segments(position_ids, rows), scale)
    return output.view(rows, tokens, heads, size), None


@functools.lru_cache(maxsize=2)  # all layers ask about the same tensor
def segments(position_ids: Tensor, rows: int = 1) -> tuple[Segment, ...]:
    """Which tokens attend to which, by their positions alone: a run of positions that go up by one comes after the
    latest tokens of its row at the positions before its first, as the branch of a tree does that is told depth first.
    So 0 1 2 0 1 are two sequences, and 0 1 2 3 2 3 are two that have 0 1 in common. Where there are no such tokens, it
    comes after nothing.

    Args:
        position_ids: [rows or 1, tokens].
        rows: how many follow one another as if they were one row.
    """
    tokens = position_ids.shape[1]
    positions = position_ids.expand(rows, tokens)
    begins = torch.ones(rows, tokens, dtype=torch.bool)
    begins[:, 1:] = positions.diff(dim=1) != 1
    starts = begins.view(-1).nonzero().view(-1)
    first = positions.reshape(-1)[starts].tolist()
    found: list[Segment] = []
    path: list[tuple[int, int]] = []  # spans of tokens, the first of them at position `root`
    root = 0
    for position, (start, end) in zip(first, itertools.pairwise([*starts.tolist(), rows * tokens]), strict=True):
        length = position - root
        if start % tokens == 0 or not 0 <= length <= sum(each for _, each in path):
            path, root, length = [], position, 0
        path = _first_tokens(path, length)
        found.append(Segment(start, end - start, tuple(path)))
        path.append((start, end - start))
    return tuple(found)


def _first_tokens(path: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for start, length in path:
        if count <= 0:
            break
        kept.append((start, min(length, count)))
        count -= length
    return kept


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """None where the positions say it all: on a CPU, without padding and without earlier tokens in a cache."""
    alone = kwargs.get("attention_mask") is None and kwargs["q_length"] == kwargs["kv_length"]
    if alone and not kwargs.get("use_vmap") and torch.device(kwargs["device"]).type == "cpu":
        return None
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
