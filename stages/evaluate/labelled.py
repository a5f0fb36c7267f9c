"""Metrics whose answers are labels."""

from __future__ import annotations

from collections.abc import Sequence

from graftline.stages.errors import InvalidField
from graftline.stages.evaluate.metric import Example, Metric
from graftline.stages.evaluate.text import normalised
from graftline.stages.expected import Volume, answer_of


class Labelled(Metric):
    """A share of answers that are the right one of several labels.

    Args:
        choices: the labels; None: the distinct answers of the rows.
    """

    origin = "what metrics on labels share, no method"

    choices: tuple[str, ...] | None = None

    def check(self) -> None:
        where = f"{type(self).__name__}.choices"
        if self.choices is not None:
            if not self.choices or not all(choice.strip() for choice in self.choices):
                raise InvalidField("has no label, or an empty one", where=where, do="name at least one label, or none")
            seen: dict[str, str] = {}
            for choice in self.choices:
                if other := seen.get(normalised(choice)):
                    raise InvalidField(f"{other!r} and {choice!r} are read as the same label", where=where)
                seen[normalised(choice)] = choice

    def labels_in(self, rows: Volume) -> tuple[str, ...]:
        """For `plan`: the labels, as far as a sample of the rows has them."""
        return self.choices or tuple(sorted({answer_of(row) for row in rows.sample} - {""}))

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """`choices`, else the rows' distinct answers."""
        return super().labels(examples) if self.choices is None else self.choices
