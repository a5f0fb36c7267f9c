"""Synchronous successive halving."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.sweep.scheduler import Scheduler


class Halving(Scheduler):
    """Successive halving: at `grace`, `grace * reduction`, `grace * reduction²`, … steps all trials that are left wait
    for each other, and the best 1/`reduction` of them go on. Ray Tune runs them from one rung to the next.

    A trial counts by its first evaluation at or after the rung's step; one that ended before, by its last. One that
    failed or measures NaN does not go on, and its place is not filled by a worse one. The last one left runs to its
    end. A trial that waits holds nothing of the machine: it ends there, and goes on from its last checkpoint.

    Args:
        grace: optimizer steps that every trial gets.
        reduction: how much rarer trials become at each of these.

    Property tested: the table is the same whichever trial is faster, however many run at once, and whatever of them is
    in the store; ties go to the trial that comes first in the grid.
    """

    method = "sweep.halving"
    origin = "synchronous successive halving, between Ray Tune's experiments"
    together: ClassVar[bool] = True

    grace: Annotated[int, Field(ge=1)]
    reduction: Annotated[float, Field(gt=1)] = 4.0

    def for_tune(self) -> Any:
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()  # within a rung nobody is compared

    def rungs(self) -> Iterator[int]:
        rung = float(self.grace)
        while True:
            yield math.ceil(rung)
            rung = max(rung * self.reduction, math.ceil(rung) + 1.0)

    def go_on(self, losses: Sequence[float | None]) -> list[int]:
        known = [(loss, place) for place, loss in enumerate(losses) if loss is not None]
        kept = max(1, int(len(losses) / self.reduction))
        return sorted(place for _, place in sorted(known)[:kept])
