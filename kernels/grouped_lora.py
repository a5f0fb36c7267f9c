"""Many LoRA adapters in one batch: every token gets its own adapter's update, `y[t] += s · B (A x[t])`.

The torch reference, which is also the CPU path. Tokens are grouped by adapter once a step (`segment`), and every
layer then does two small matrix products a group; ranks and scales may differ, and the base's tokens cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

BASE = -1
"""The slot of a token without an adapter."""


@dataclass(frozen=True)
class Factors:
    """One layer's part of one adapter: `a` [rank, in], `b` [out, rank], and the scale of their product."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Segment:
    """The tokens of one adapter: a slice where they lie together, else their positions."""

    slot: int
    tokens: slice | torch.Tensor


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


def grouped_lora(
    output: torch.Tensor, x: torch.Tensor, factors: Mapping[int, Factors], segments: Sequence[Segment]
) -> torch.Tensor:
    """Add every token's update to a linear layer's output, in place.

    Args:
        output: [tokens, out], the layer's own; returned.
        x: [tokens, in], its input.
        factors: slot → this layer's factors, in the dtype of `x`; an adapter that leaves the layer alone is absent.
        segments: of these tokens.
    """
    for each in segments:
        own = factors.get(each.slot)
        if own is None:
            continue
        low = torch.nn.functional.linear(x[each.tokens], own.a)
        if isinstance(each.tokens, slice):
            output[each.tokens].addmm_(low, own.b.t(), alpha=own.scale)
        else:
            output.index_add_(0, each.tokens, torch.nn.functional.linear(low, own.b), alpha=own.scale)
    return output


def _compact(positions: list[int], device: torch.device | str) -> slice | torch.Tensor:
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):
        return slice(first, last + 1)
    return torch.tensor(positions, device=device)
