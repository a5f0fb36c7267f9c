"""What metrics share that are a mean of numbers, one a row, instead of a share of right answers. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftline.stages.evaluate import interval
from graftline.stages.evaluate.metric import Prediction


def mean(predictions: Sequence[Prediction], cluster: Sequence[int], seed: int) -> dict[str, Any]:
    """The mean of what was measured; rows on which nothing could be are `missing`."""
    known = [place for place, each in enumerate(predictions) if each.value is not None]
    found = interval.mean(_numbers(predictions, known), [cluster[place] for place in known], seed)
    missing = len(predictions) - len(known)
    return {**found, "missing": missing} if missing else found


def gain(
    before: Sequence[Prediction], after: Sequence[Prediction], cluster: Sequence[int], seed: int
) -> dict[str, Any]:
    """How much larger the mean is after than before, on the rows measured both times."""
    both = [
        place
        for place, (one, other) in enumerate(zip(before, after, strict=True))
        if one.value is not None and other.value is not None
    ]
    numbers = _numbers(before, both), _numbers(after, both)
    return interval.mean_gain(*numbers, [cluster[place] for place in both], seed)


def _numbers(predictions: Sequence[Prediction], places: Sequence[int]) -> list[tuple[float, float]]:
    return [(float(predictions[place].value or 0.0), predictions[place].weight) for place in places]
