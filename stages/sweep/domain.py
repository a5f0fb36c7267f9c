"""The values a swept field may take."""

from __future__ import annotations

from typing import Any

from graftline.stages.specification import Plug


class Domain(Plug):
    """Values of one field. `stages/sweep/domains.py` has the functions that make them."""

    def listed(self) -> tuple[Any, ...] | None:
        """Every value, where they can be listed."""
        return None

    def ends(self) -> tuple[Any, ...]:
        """Values at which a field is tried when a sweep is built: all that are listed, or the ends of a range."""
        return self.listed() or ()

    def at(self, share: float) -> Any:
        """The value at a share (0 up to, but not, 1) of the way: uniform shares make draws."""
        raise NotImplementedError(f"{type(self).__name__}.at")

    def for_tune(self) -> Any:
        """The domain as Ray Tune knows it, its values such as `from_tune` takes."""
        raise NotImplementedError(f"{type(self).__name__}.for_tune")

    def from_tune(self, value: Any) -> Any:
        """The field's value for one of Ray Tune's."""
        return value
