"""A list of values."""

from __future__ import annotations

from typing import Any, ClassVar

from graftline.stages.errors import InvalidField
from graftline.stages.rows import canonical
from graftline.stages.specification import plain, reference
from graftline.stages.sweep.domain import Domain


class Listed(Domain):
    """These values and no others; `sweep.grid` and `sweep.choice` make it.

    Args:
        values: numbers, texts, plugs or stages, each once.
    """

    origin = "a list, not a method"
    specimen: ClassVar[dict[str, Any]] = {"values": (0.25, 0.5)}

    values: tuple[Any, ...]

    def check(self) -> None:
        if not self.values:
            raise InvalidField("has no value", where="grid", do="give at least one")
        written = [canonical(plain(value, reference)) for value in self.values]
        if len(set(written)) < len(written):
            raise InvalidField(f"has a value twice: {self.values}", where="grid", do="give each once")

    def listed(self) -> tuple[Any, ...]:
        return self.values

    def at(self, share: float) -> Any:
        return self.values[int(share * len(self.values))]

    def for_tune(self) -> Any:
        from ray import tune

        return tune.choice(list(range(len(self.values))))  # a value may be a plug, which Optuna does not take

    def from_tune(self, value: Any) -> Any:
        return self.values[int(value)]
