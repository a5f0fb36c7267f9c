"""What ends bad trials early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from graftline.stages.errors import InvalidField
from graftline.stages.specification import Plug
from graftline.stages.stage import Stage


class Scheduler(Plug):
    """Slot: which trials go on? Ray Tune's own scheduler may decide, trial by trial (`for_tune`), or trials are ranked
    `together`: all run to a rung before any goes on."""

    together: ClassVar[bool] = False
    """Whether it ranks all trials at once: then `rungs` and `go_on` are its own, and it does not depend on timing."""

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

    def for_tune(self) -> Any:
        """Ray Tune's own scheduler; it is told metric and mode, and counts optimizer steps as `step`."""
        raise NotImplementedError(f"{type(self).__name__}.for_tune")

    def rungs(self) -> Iterator[int]:
        """Of one that ranks trials together: the rungs, in optimizer steps, endlessly, each larger than the last."""
        raise NotImplementedError(f"{type(self).__name__}.rungs")

    def go_on(self, losses: Sequence[float | None]) -> list[int]:
        """Of one that ranks trials together: places of those that go on, the smallest being the best (None: it failed
        or measured no finite number)."""
        raise NotImplementedError(f"{type(self).__name__}.go_on")
