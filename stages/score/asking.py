"""Asking an engine about many rows, where one that cannot be asked does not spoil the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from graftline.stages.errors import PromptTooLong, RowFault

Item = TypeVar("Item")
Found = TypeVar("Found")


def asked(ask: Callable[[Sequence[Item]], Sequence[Found]], items: Sequence[Item]) -> list[Found | None]:
    """What `ask` answers for each item; None for one that it refuses (longer than the model's context, nothing to
    score, not to be rendered). Errors of the world pass through."""
    try:
        return list(ask(items)) if items else []
    except (PromptTooLong, RowFault):
        if len(items) == 1:
            return [None]
        half = len(items) // 2
        return asked(ask, items[:half]) + asked(ask, items[half:])


def mean(values: Sequence[float] | None) -> float | None:
    """The mean; None where there is nothing, or it is no finite number."""
    return finite(math.fsum(values) / len(values)) if values and all(map(math.isfinite, values)) else None


def finite(value: float) -> float | None:
    """The number; None where it is infinite or not a number: those never leave a scorer."""
    return value if math.isfinite(value) else None


def said(turns: Sequence[Mapping[str, Any]] | None) -> tuple[dict[str, str], ...]:
    """A row's messages as an engine takes them; the empty tuple where there are none."""
    return tuple({"role": turn["role"] or "", "content": turn["content"] or ""} for turn in turns or ())
