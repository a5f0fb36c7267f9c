"""Asynchronous successive halving."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from graftline.stages.sweep.scheduler import Scheduler

ENDLESS = 10**9
"""Steps that no trial reaches: its length is its own to say."""


class Asha(Scheduler):
    """ASHA: at `grace`, `grace * reduction`, `grace * reduction²`, … steps a trial goes on only if its metric is among
    the best 1/`reduction` of those that came so far; it waits for none of the others. Ray Tune decides.

    Args:
        grace: optimizer steps that every trial gets.
        reduction: how much rarer trials become at each of these.

    Property tested: a bad trial ends at the first evaluation after `grace` steps, keeps its checkpoints and commits
    nothing; a sweep with it says that it is not reproducible.
    """

    method = "sweep.asha"
    origin = "asynchronous successive halving, Ray Tune's"

    grace: Annotated[int, Field(ge=1)]
    reduction: Annotated[float, Field(gt=1)] = 4.0

    def for_tune(self, metric: str, mode: Literal["min", "max"]) -> Any:
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            time_attr="step",
            metric=metric,
            mode=mode,
            max_t=ENDLESS,
            grace_period=self.grace,
            reduction_factor=self.reduction,
        )
