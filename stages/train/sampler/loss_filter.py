"""Only the rows that are still hard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from graftline.stages.specification import Paper
from graftline.stages.train.plugs import Drawn, Sampler
from graftline.stages.train.sampler.shuffled import Permuted


class LossFilter(Sampler):
    """Trains on all rows for a while; from then on looks at each row first, without gradients, and trains only on those
    whose loss is at least θ, gathered into full batches. θ is the mean loss of the last rows of that while, and stays.

    `Train.epochs` and `Train.steps` say how many rows it *looks at*, so it makes fewer steps than another sampler; the
    schedule counts steps, so it is cut off where the rows end (`AdamW(schedule="constant")` suits). Rows that do not
    fill a last batch are not trained on. Logs `rows_seen`, `rows_skipped` and `loss_threshold`.

    Args:
        warmup: share of all rows looked at (above 0, below 1) that are all trained on.
        window: losses that θ is the mean of.

    Property tested: after the warm-up every batch is full and each of its rows had a loss of θ or more when it was
    looked at; θ does not move; seen = trained + skipped + waiting; a resumed run is the same to the bit.
    """

    method = "select.loss_filter"
    papers = (Paper("Efficient NLP Model Finetuning via Multistage Data Filtering"),)
    tier = 2
    leaves_out = True

    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.2
    window: Annotated[int, Field(ge=1)] = 128

    def start(self, n: int, batch_size: int, seed: int, total: int) -> Filtered:
        return Filtered(self, n, batch_size, seed, total)


class Filtered(Drawn):
    """A shuffled stream of rows, of which the easy ones are left out."""

    def __init__(self, plug: LossFilter, n: int, batch_size: int, seed: int, total: int) -> None:
        self.plug, self.batch_size, self.total = plug, batch_size, total
        self.stream = Permuted(n, batch_size, seed)
        self.free = math.ceil(plug.warmup * total / batch_size)
        self.read = 0  # batches of the stream
        self.recent: list[float] = []
        self.threshold: float | None = None
        self.waiting: list[int] = []
        self.skipped = 0
        self.observes = True

    def peek(self, step: int) -> list[int]:
        return [] if step < self.free or len(self.waiting) >= self.batch_size else self._next()

    def keep(self, places: Sequence[int], losses: Sequence[float]) -> None:
        assert self.threshold is not None
        hard = [place for place, loss in zip(places, losses, strict=True) if loss >= self.threshold]
        self.waiting += hard
        self.skipped += len(places) - len(hard)

    def next_batch(self, step: int) -> tuple[list[int], list[float]]:
        if step < self.free:
            places = self._next()
        elif len(self.waiting) >= self.batch_size:
            places, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
        else:
            places = []
        return places, [1.0] * len(places)

    def observe(self, places: Sequence[int], losses: Sequence[float]) -> None:
        self.recent = [*self.recent, *losses][-self.plug.window :]
        if self.read == self.free:
            self._freeze(sum(self.recent) / len(self.recent))

    def numbers(self) -> dict[str, float]:
        found = {"rows_seen": float(self._seen()), "rows_skipped": float(self.skipped)}
        return found if self.threshold is None else found | {"loss_threshold": self.threshold}

    def state(self) -> dict[str, Any]:
        names = ("read", "recent", "threshold", "waiting", "skipped")
        return {name: getattr(self, name) for name in names}

    def load(self, state: Mapping[str, Any]) -> None:
        self.read, self.skipped = state["read"], state["skipped"]
        self.recent, self.waiting = list(state["recent"]), list(state["waiting"])
        if state["threshold"] is not None:
            self._freeze(state["threshold"])

    def _next(self) -> list[int]:
        """The stream's next batch; none at its end."""
        left = self.total - self._seen()
        if left <= 0:
            return []
        places, _ = self.stream.next_batch(self.read)
        self.read += 1
        return places[:left]

    def _seen(self) -> int:
        return min(self.total, self.read * self.batch_size)

    def _freeze(self, threshold: float) -> None:
        self.threshold, self.recent, self.observes = threshold, [], False
