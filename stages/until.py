"""When a loop ends before its last round."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graftline.stages.errors import InvalidField
from graftline.stages.evaluate.figure import Figure
from graftline.stages.specification import Plug

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact

ROWS = "rows"


class Until(Plug):
    """Ends a `Repeat` after the round that reaches a number, or before the one that keeps no row.

    Args:
        metric: a metric of the round (`rows`: how many rows it kept), or a report's, `report.metric("exact_match")`,
            whose report has `Previous()` where the round just made belongs.
        at_least, at_most: what the metric must reach; one of them, or both. A NaN reaches nothing.
        nothing_kept: whether a round that keeps no row ends the loop; the round before it is then the result.
    """

    origin = "a condition, not a method"

    metric: str | Figure | None = None
    at_least: float | None = None
    at_most: float | None = None
    nothing_kept: bool = False

    def check(self) -> None:
        bounds = self.at_least is not None or self.at_most is not None
        if bounds != (self.metric is not None) or not (bounds or self.nothing_kept):
            raise InvalidField(
                "needs a metric with at_least= or at_most=, or nothing_kept=True",
                where="Until",
                do='write Until(metric="eval_loss", at_most=0.5)',
            )

    def reached(self, made: Artefact, report: Callable[[Figure], float]) -> bool:
        """Whether the loop ends after this round.

        Args:
            made: the round's artefact.
            report: reads a figure of a report on the round.

        Raises:
            InvalidField: the round has no such metric.
        """
        if self.metric is None:
            return False
        if isinstance(self.metric, Figure):
            value: float | None = report(self.metric)
        elif self.metric == ROWS and made.kind == "rows":
            value = float(made.count)
        elif self.metric in made.metrics:
            value = made.metrics[self.metric]
        else:
            raise InvalidField(
                f"a round has no {self.metric!r}", where="Until.metric", do=f"use one of {', '.join(made.metrics)}"
            )
        if value is None or value != value:
            return False
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)
