"""The source of supervised training: a sampler's batches over prepared rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from graftline.stages.train.plugs import Attached, Drawn


class IndexPlan:
    """What the loop asks for the next batch, where all rows are known beforehand.

    Args:
        drawn: the sampler at work.
        batch_size: rows of a batch.
        total: rows looked at in all; the last batch ends there.
    """

    def __init__(self, drawn: Drawn, batch_size: int, total: int) -> None:
        self.drawn, self.batch_size, self.total = drawn, batch_size, total

    @property
    def steps(self) -> int:
        """How many there are, or at most: a sampler that leaves rows out makes fewer."""
        return math.ceil(self.total / self.batch_size)

    @property
    def observes(self) -> bool:
        return self.drawn.observes

    def peek(self, step: int) -> list[int]:
        return self.drawn.peek(step)

    def keep(self, places: Sequence[int], losses: Sequence[float]) -> None:
        self.drawn.keep(places, losses)

    def next(self, step: int) -> tuple[list[int], list[float]]:
        places, weights = self.drawn.next_batch(step)
        left = self.total - step * self.batch_size
        return places[:left], weights[:left]

    def observe(self, places: Sequence[int], losses: Sequence[float]) -> None:
        self.drawn.observe(places, losses)

    def numbers(self) -> dict[str, float]:
        return self.drawn.numbers()

    def published(self, step: int, attached: Attached) -> None:
        """Supervised rows do not depend on the parameters."""

    def state(self) -> dict[str, Any]:
        return self.drawn.state()

    def load(self, state: Mapping[str, Any]) -> None:
        self.drawn.load(state)
