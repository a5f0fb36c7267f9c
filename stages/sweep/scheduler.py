"""What ends bad trials early."""

from __future__ import annotations

from typing import Any, Literal

from graftline.stages.errors import InvalidField
from graftline.stages.specification import Plug
from graftline.stages.stage import Stage


class Scheduler(Plug):
    """Slot: which trials go on?"""

    def check_trials(self, stage: Stage, metric: Any) -> None:
        """Refuse trials that cannot be ended early.

        Raises:
            InvalidField: they have no metric before their end, or processes of their own.
        """
        if not isinstance(metric, str):
            raise InvalidField(
                "a report is there only once a trial has ended",
                where="Sweep.scheduler",
                do="pick by a metric of the trial, such as eval_loss, or run all trials to the end",
            )
        if len(stage.footprint()) > 1:
            raise InvalidField(
                f"a trial of {len(stage.footprint()) - 1} workers cannot be ended early",
                where="Sweep.scheduler",
                do="use one worker a trial, or run all trials to the end",
            )
        if stage.__dict__.get("eval_every") == 0:
            raise InvalidField(
                f"{stage.name} is evaluated at its end alone",
                where="Sweep.scheduler",
                do="set eval_every to the steps between two evaluations",
            )

    def for_tune(self, metric: str, mode: Literal["min", "max"]) -> Any:
        """Ray Tune's own scheduler."""
        raise NotImplementedError(f"{type(self).__name__}.for_tune")
