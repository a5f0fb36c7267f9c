"""The slot of `Compare`: how answers are asked for, and what counts as right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graftline.stages.errors import InvalidField
from graftline.stages.evaluate.text import normalised
from graftline.stages.specification import Plug

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Engine


@dataclass(frozen=True, slots=True)
class Example:
    """One row as it is asked: `prompt` is its messages without the final assistant turn."""

    id: str
    prompt: tuple[Mapping[str, str], ...]
    reference: str
    group: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer: the text people see, the label it stands for ("" = none), and why it stands for none."""

    text: str
    label: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Asked:
    """What a metric asks with: an engine, the adapter's name on it (None = the model itself), the labels, how many
    tokens the longest of some texts has, and where to say that so many more examples are done."""

    engine: Engine
    adapter: str | None
    labels: tuple[str, ...]
    longest: Callable[[Sequence[str]], int]
    tick: Callable[[int], None] = lambda count: None


class Metric(Plug):
    """A share of right answers. A metric of your own sets `figure` and overrides `predict` and `correct`.

    Model calls (`predict`) and judgement (`correct`, a pure function) are apart, so that the second is tested alone.

    Args:
        choices: the labels; None: the distinct answers of the rows.
    """

    origin = "the slot of Compare: what a metric is derived from, no method"
    figure: ClassVar[str] = ""
    """Its name in reports: `exact_match`."""

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

    def predict(self, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
        """One prediction for each example, in order. May be called for some of the rows alone."""
        raise NotImplementedError(f"{type(self).__name__}.predict")

    def correct(self, prediction: Prediction, example: Example) -> bool:
        """Whether the label a prediction stands for is the reference."""
        return bool(prediction.label) and normalised(prediction.label) == normalised(example.reference)

    def decoding(self, asked: Asked) -> dict[str, Any]:
        """How answers are asked for, as the report says it."""
        return {}

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """`choices`, else the rows' distinct answers, sorted: those that are read alike are one label, in its most
        frequent spelling (of equally frequent ones the first by code point)."""
        if self.choices is not None:
            return self.choices
        spellings: dict[str, Counter[str]] = {}
        for example in examples:
            spellings.setdefault(normalised(example.reference), Counter())[example.reference] += 1
        return tuple(sorted(min(count, key=lambda text: (-count[text], text)) for count in spellings.values()))
