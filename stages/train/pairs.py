"""Pairs of answers through a model: packed as tensors, and each answer's log-probability.

Policy and reference are both computed here, so that they agree on every token that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftline.stages.train.plugs import Row

ANSWERS = ("chosen_ids", "rejected_ids")


def pair_length(row: Row) -> int:
    """Tokens of a pair: the prompt with one answer, and again with the other."""
    return 2 * len(row["prompt_ids"]) + sum(len(row[name]) for name in ANSWERS)


def pack_pairs(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Both answers of each row, each after its own copy of the prompt, as one packed row of tokens.

    Returns:
        `input_ids` and `position_ids` [1, tokens], restarted at each sequence; `positions`, `labels` and `owner`
        [answer tokens]: where a token is predicted, the token, and its answer (2·row, + 1 for the rejected one).
    """
    import numpy as np
    import torch

    sequences = [(row["prompt_ids"], row[name]) for row in rows for name in ANSWERS]
    lengths = [len(prompt) + len(answer) for prompt, answer in sequences]
    ends = np.cumsum(lengths)
    ids = np.concatenate([part for sequence in sequences for part in sequence]).astype(np.int64)
    targets = np.concatenate(
        [np.arange(end - len(answer), end) for end, (_, answer) in zip(ends, sequences, strict=True)]
    )
    owner = np.repeat(np.arange(len(sequences)), [len(answer) for _, answer in sequences])
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        "positions": torch.from_numpy(targets - 1),
        "labels": torch.from_numpy(ids[targets]),
        "owner": torch.from_numpy(owner),
    }


def answer_logprobs(
    model: nn.Module, tensors: dict[str, Tensor], pairs: int, graph: bool = True
) -> tuple[Tensor, Tensor]:
    """Each answer's log-probability, the sum over its tokens in fp32, and its number of tokens: both [pairs, 2],
    chosen first. `graph` as in `label_logprobs`."""
    import torch

    from graftline.stages.lm.label_logprobs import label_logprobs

    ids, positions = tensors["input_ids"], tensors["position_ids"]
    each = label_logprobs(model, ids, positions, tensors["positions"], tensors["labels"], graph=graph)
    zeros = torch.zeros(2 * pairs, dtype=torch.float32, device=each.device)
    owner = tensors["owner"]
    tokens = zeros.index_add(0, owner, torch.ones_like(each))
    return zeros.index_add(0, owner, each).view(pairs, 2), tokens.view(pairs, 2)
