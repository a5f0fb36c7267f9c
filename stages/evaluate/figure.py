"""One number of a report, as a value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graftline.stages.specification import Plug
from graftline.stages.stage import Report

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact


class Figure(Plug):
    """One number of a report; `Compare.metric` makes it and checks the name.

    Args:
        report: the report.
        name: the number's name among its metrics (`exact_match/tickets`).
    """

    origin = "a reference, not a method"

    report: Report
    name: str

    def read(self, report: Artefact) -> float:
        """The number, from the report's artefact; nan where nothing could be measured."""
        value = report.metrics[self.name]
        return math.nan if value is None else float(value)
