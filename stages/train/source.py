"""Where the loop's batches come from. Of supervised training: a sampler's batches over prepared rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from graftline.stages.train.plugs import Attached, Drawn


class BatchSource(Protocol):
    """Where batches come from."""

    @property
    def observes(self) -> bool:
        """Whether it wants the rows' losses."""

    def peek(self, step: int) -> Sequence[int]:
        """Places of rows whose losses it wants to know before it says this step's batch, until there are none."""

    def keep(self, places: Sequence[int], losses: Sequence[float]) -> None:
        """The losses of the rows it asked for."""

    def next(self, step: int) -> tuple[Sequence[int], Sequence[float]]:
        """Places and weights of the rows of this step's global batch, the same on every worker. None where there are
        no more."""

    def observe(self, places: Sequence[int], losses: Sequence[float]) -> None:
        """The losses of the rows just trained on."""

    def numbers(self) -> Mapping[str, float]:
        """What is worth logging after a step."""

    def published(self, step: int, attached: Attached) -> None:
        """The adapter as it stands after so many steps."""

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint keeps, as JSON."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Take a checkpoint's state back."""


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
