"""A range of numbers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from graftline.stages.errors import InvalidField
from graftline.stages.sweep.domain import Domain


class Ranged(Domain):
    """Numbers from a range; `sweep.uniform`, `sweep.log_uniform` and `sweep.integers` make it.

    Args:
        low, high: its ends.
        log: whether orders of magnitude are equally likely, not numbers.
        whole: whether the numbers are whole ones, both ends included.
    """

    origin = "a range, not a method"
    specimen: ClassVar[dict[str, Any]] = {"low": 0.5, "high": 1.0}

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def check(self) -> None:
        if self.low >= self.high:
            raise InvalidField(f"is empty: {self.low:g} to {self.high:g}", where="range", do="make low less than high")
        if self.log and self.low <= 0:
            raise InvalidField(f"begins at {self.low:g}", where="log_uniform", do="begin above 0")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise InvalidField(f"goes from {self.low:g} to {self.high:g}", where="integers", do="use whole numbers")

    def listed(self) -> tuple[Any, ...] | None:
        return tuple(range(int(self.low), int(self.high) + 1)) if self.whole and not self.log else None

    def ends(self) -> tuple[Any, ...]:
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def at(self, share: float) -> Any:
        high = self.high + 1 if self.whole else self.high
        if self.log:
            found = math.exp(math.log(self.low) + share * (math.log(high) - math.log(self.low)))
        else:
            found = self.low + share * (high - self.low)
        found = min(max(found, self.low), self.high) if not self.whole else found
        return min(int(found), int(self.high)) if self.whole else found

    def for_tune(self) -> Any:
        from ray import tune

        if self.whole:
            ends = int(self.low), int(self.high) + 1  # Tune leaves the upper end out
            return tune.lograndint(*ends) if self.log else tune.randint(*ends)
        return tune.loguniform(self.low, self.high) if self.log else tune.uniform(self.low, self.high)
