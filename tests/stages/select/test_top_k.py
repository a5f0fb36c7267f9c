"""The k best, whatever order the rows come in."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField, MissingColumn, RunError
from graftline.stages.select import TopK
from graftline.stages.select.ranking import missing

scores = st.one_of(st.none(), st.just(float("nan")), st.sampled_from([-1.0, 0.0, 0.5, 2.0]))


@given(st.lists(scores, max_size=12), st.integers(1, 14), st.booleans(), st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_choice_is_the_best_and_does_not_depend_on_order(
    given_rows: Any, table: Any, context: Any, values: list[Any], k: int, largest: bool, random: Any
) -> None:
    assume(not values or not all(map(missing, values)))
    rows = [{"id": f"{number:02}", "score": value} for number, value in enumerate(values)]
    stage = TopK(rows=given_rows(has={"score": "float64"}), by="score", k=k, largest=largest)
    shuffled = table(rows, score="float64")
    shuffled = shuffled.take(pa.array(random.sample(range(len(rows)), len(rows)), pa.int64()))
    found = {each.id: each for each in stage.select_rows(shuffled, context)}
    assert set(found) == {row["id"] for row in rows}
    kept = [row for row in rows if found[row["id"]].outcome == "kept"]
    assert len(kept) == min(k, len(rows))
    with_score = [row for row in rows if row["score"] is not None and row["score"] == row["score"]]
    order = sorted(with_score, key=lambda row: (-row["score"] if largest else row["score"], row["id"]))
    order += [row for row in rows if row not in with_score]
    assert {row["id"] for row in kept} == {row["id"] for row in order[:k]}


def test_reasons(given_rows: Any, table: Any, context: Any) -> None:
    rows = [{"id": "a", "score": 1}, {"id": "b", "score": 2}, {"id": "c", "score": None}]
    stage = TopK(rows=given_rows(has={"score": "int64"}), by="score", k=1)
    assert [(each.id, each.reason) for each in stage.select_rows(table(rows, score="int64"), context)] == [
        ("b", ""), ("a", "not in the top 1"), ("c", "no score"),
    ]  # fmt: skip


def test_the_column_must_be_a_number(given_rows: Any) -> None:
    with pytest.raises(MissingColumn, match="'answer' as number"):
        TopK(rows=given_rows(), by="answer", k=1)
    with pytest.raises(InvalidField, match=r"TopK\.k"):
        TopK(rows=given_rows(has={"score": "int64"}), by="score", k=0)


def test_scores_that_are_all_missing_are_no_choice(given_rows: Any, table: Any, context: Any) -> None:
    stage = TopK(rows=given_rows(has={"score": "float64"}), by="score", k=1)
    rows = [{"id": "a", "score": float("nan")}, {"id": "b", "score": None}]
    with pytest.raises(RunError, match="none of 2 rows has a value in 'score'"):
        list(stage.select_rows(table(rows, score="float64"), context))
