"""The slot of `Compare`: how answers are asked for, and what counts as right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from graftline.stages.evaluate import interval
from graftline.stages.evaluate.text import normalised
from graftline.stages.expected import UNKNOWN, Usage, Volume
from graftline.stages.specification import Plug

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Engine
    from graftline.stages.lm.reader import Reader


@dataclass(frozen=True, slots=True)
class Example:
    """One row as it is asked: `prompt` is its messages without the final assistant turn."""

    id: str
    prompt: tuple[Mapping[str, str], ...]
    reference: str
    group: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer: the text people see, the label it stands for ("" = none), and why it stands for none; or a number
    measured on the row (None = none), which counts as often as its weight says."""

    text: str
    label: str = ""
    fault: str = ""
    value: float | None = None
    weight: float = 1.0


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
    """A share of right answers. A metric of your own sets `figure` and overrides `predict` and `correct`; one that is
    no share sets `judges` to False and overrides `cell` and `gain`.

    Model calls (`predict`) and judgement (pure functions) are apart, so that the second is tested alone.
    """

    origin = "the slot of Compare: what a metric is derived from, no method"
    figure: ClassVar[str] = ""
    """Its name in reports: `exact_match`."""
    also: ClassVar[tuple[str, ...]] = ()
    """Names of further numbers in its cells that are metrics of the report, too."""
    judges: ClassVar[bool] = True
    """Whether its answers are right or wrong: a report's samples and confusions are those of the first that judges."""

    def predict(self, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
        """One prediction for each example, in order. May be called for some of the rows alone."""
        raise NotImplementedError(f"{type(self).__name__}.predict")

    def expected(self, rows: Volume, reader: Reader, tuned: bool) -> Usage:
        """For `plan`: what it asks one column about rows; `tuned`: whether the column has learnt to answer."""
        return replace(UNKNOWN, requests=rows.count, mark=rows.mark)

    def correct(self, prediction: Prediction, example: Example) -> bool | None:
        """Whether the label a prediction stands for is the reference (None: nobody can tell; it counts for nothing)."""
        return bool(prediction.label) and normalised(prediction.label) == normalised(example.reference)

    def cell(
        self, predictions: Sequence[Prediction], examples: Sequence[Example], cluster: Sequence[int], seed: int
    ) -> dict[str, Any]:
        """One column's number: `value`, `n`, `ci_low`, `ci_high`, and what else is worth saying.

        Args:
            cluster: a number for each row; rows that have the same count as one draw.
        """
        verdicts = [self.correct(*pair) for pair in zip(predictions, examples, strict=True)]
        known = [place for place, verdict in enumerate(verdicts) if verdict is not None]
        found = interval.share([bool(verdicts[place]) for place in known], [cluster[place] for place in known], seed)
        return found if len(known) == len(verdicts) else {**found, "missing": len(verdicts) - len(known)}

    def gain(
        self, before: Sequence[Prediction], after: Sequence[Prediction], examples: Sequence[Example],
        cluster: Sequence[int], seed: int,
    ) -> dict[str, Any]:  # fmt: skip
        """How much larger a column's number is than the base's, on the rows that both have a verdict on."""
        pairs = [
            (self.correct(one, example), self.correct(other, example))
            for one, other, example in zip(before, after, examples, strict=True)
        ]
        known = [place for place, pair in enumerate(pairs) if None not in pair]
        first, second = ([bool(pairs[place][side]) for place in known] for side in (0, 1))
        return interval.gain(first, second, [cluster[place] for place in known], seed)

    def decoding(self, asked: Asked) -> dict[str, Any]:
        """How answers are asked for, as the report says it."""
        return {}

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The rows' distinct answers, sorted: those that are read alike are one label, in its most frequent spelling
        (of equally frequent ones the first by code point)."""
        spellings: dict[str, Counter[str]] = {}
        for example in examples:
            spellings.setdefault(normalised(example.reference), Counter())[example.reference] += 1
        return tuple(sorted(min(count, key=lambda text: (-count[text], text)) for count in spellings.values()))
