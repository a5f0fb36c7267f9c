"""One order of rows by a score: missing last, ties by id."""

from __future__ import annotations

import pytest

from graftline.stages.errors import RunError
from graftline.stages.select.ranking import missing, ranked, refuse_unscored


def test_missing_is_null_and_nan() -> None:
    assert [missing(value) for value in (None, float("nan"), 0.0, "", False)] == [True, True, False, False, False]


def test_the_best_first_and_no_score_last() -> None:
    scores = [1.0, float("nan"), 3.0, None, 3.0]
    assert ranked(["a", "b", "d", "e", "c"], scores) == [4, 2, 0, 1, 3]
    assert ranked(["a", "b", "d", "e", "c"], scores, largest=False) == [0, 4, 2, 1, 3]
    assert ranked(["b", "a"], None) == [1, 0]


def test_where_no_row_has_a_score_there_is_nothing_to_choose_by() -> None:
    refuse_unscored([], "judge", "TopK")
    refuse_unscored([None, 0.0, float("nan")], "judge", "TopK")
    with pytest.raises(RunError, match=r"TopK: none of 2 rows has a value in 'judge'\. Look"):
        refuse_unscored([None, float("nan")], "judge", "TopK")
