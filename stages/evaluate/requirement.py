"""What a service asks of a report before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftline.stages.errors import RequirementUnmet
from graftline.stages.evaluate.figure import Figure
from graftline.stages.specification import Plug

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact


class Requirement(Plug):
    """A figure that must be at least so large; `Compare.at_least` makes it.

    Args:
        figure: the figure.
        least: the smallest value that will do.
    """

    origin = "a threshold, not a method"

    figure: Figure
    least: float

    def hold(self, report: Artefact) -> None:
        """Check it against the report's artefact.

        Raises:
            RequirementUnmet: with the figure, its confidence interval and what was required. NaN never holds.
        """
        value = self.figure.read(report)
        if value >= self.least:
            return
        metric, _, column = self.figure.name.partition("/")
        cell = report.json("report.json").get("metrics", {}).get(metric, {}).get(column, {})
        known = cell.get("ci_low") is not None
        interval = f" (n={cell['n']}, 95 % {cell['ci_low']:.3f} to {cell['ci_high']:.3f})" if known else ""
        raise RequirementUnmet(
            f"{metric} of {column} is {value:.3f}{interval}, at least {self.least:g} is required",
            where=self.figure.report.name,
            do="train a better adapter or require less",
        )
