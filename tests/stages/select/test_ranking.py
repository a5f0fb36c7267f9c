"""One order of rows by a score: missing last, ties by id."""

from __future__ import annotations

from graftline.stages.select.ranking import missing, ranked


def test_missing_is_null_and_nan() -> None:
    assert [missing(value) for value in (None, float("nan"), 0.0, "", False)] == [True, True, False, False, False]


def test_the_best_first_and_no_score_last() -> None:
    scores = [1.0, float("nan"), 3.0, None, 3.0]
    assert ranked(["a", "b", "d", "e", "c"], scores) == [4, 2, 0, 1, 3]
    assert ranked(["a", "b", "d", "e", "c"], scores, largest=False) == [0, 4, 2, 1, 3]
    assert ranked(["b", "a"], None) == [1, 0]
