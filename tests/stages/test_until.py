"""`Until`: what ends a loop."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages import Until
from graftline.stages.errors import InvalidField


class Made:
    """A round's artefact."""

    def __init__(self, kind: str = "rows", count: int = 3, **metrics: Any) -> None:
        self.kind, self.count, self.metrics = kind, count, metrics


def reached(until: Until, made: Made) -> bool:
    return until.reached(made, lambda figure: 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [{}, {"metric": "loss"}, {"at_most": 1.0}, {"at_least": 1.0, "nothing_kept": True}, {"metric": 3, "at_most": 1.0}],
)
def test_wrong_conditions_are_refused(fields: Any) -> None:
    with pytest.raises(InvalidField, match="Until"):
        Until(**fields)


def test_both_bounds_must_hold() -> None:
    until = Until(metric="loss", at_least=1.0, at_most=2.0)
    assert [reached(until, Made(loss=loss)) for loss in (0.9, 1.0, 2.0, 2.1)] == [False, True, True, False]


def test_what_is_no_number_reaches_nothing() -> None:
    for value in (None, float("nan")):
        assert not reached(Until(metric="loss", at_most=1.0), Made(loss=value))
        assert not reached(Until(metric="loss", at_least=1.0), Made(loss=value))


def test_rows_are_counted() -> None:
    assert reached(Until(metric="rows", at_most=3.0), Made(count=3))
    assert not reached(Until(metric="rows", at_most=3.0), Made(count=4))
    assert not reached(Until(nothing_kept=True), Made(count=4))
    with pytest.raises(InvalidField, match=r"Until\.metric: a round has no 'rows'.*loss"):
        reached(Until(metric="rows", at_most=3.0), Made("model", loss=1.0))
