"""Conditions on a column, against plain comparisons."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages.errors import InvalidField, MissingColumn
from graftline.stages.select import Where
from graftline.stages.value_graph import from_json, to_json

NAN = float("nan")
VALUES = [None, NAN, -1.0, 0.0, 0.5, 1.0, 2.0]
ROWS = [{"id": f"{number}", "score": value} for number, value in enumerate(VALUES)]


@pytest.fixture
def where(given_rows: Any, table: Any, context: Any) -> Any:
    def select(rows: list[dict[str, Any]] = ROWS, type_: str = "float64", **conditions: Any) -> dict[str, str]:
        """Id → why it was filtered ("" = kept)."""
        stage = Where(rows=given_rows(has={"score": type_}), column="score", **conditions)
        assert from_json(to_json({"": stage}), {type(stage.rows).qualified: type(stage.rows)}) == {"": stage}
        found = list(stage.select_rows(table(rows, score=type_), context))
        assert all((each.outcome == "kept") == (each.reason == "") for each in found)
        return {each.id: each.reason for each in found}

    return select


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        ({"at_least": 0.5}, lambda value: value >= 0.5),
        ({"above": 0.5}, lambda value: value > 0.5),
        ({"at_most": 0.5}, lambda value: value <= 0.5),
        ({"below": 0.5}, lambda value: value < 0.5),
        ({"equals": 1}, lambda value: value == 1),
        ({"one_of": (0, 2.0)}, lambda value: value in (0, 2)),
        ({"none_of": (0.5, 7)}, lambda value: value != 0.5),
        ({"at_least": 0.0, "below": 1.0}, lambda value: 0 <= value < 1),
        ({}, lambda value: True),
    ],
)
def test_conditions_and_missing_values(where: Any, conditions: dict[str, Any], holds: Any) -> None:
    found = where(**conditions)
    with_value = [row for row in ROWS if row["score"] is not None and row["score"] == row["score"]]
    assert {row["id"] for row in with_value if not found[row["id"]]} == {
        row["id"] for row in with_value if holds(row["score"])
    }
    assert [found["0"], found["1"]] == ["score is missing"] * 2
    if conditions:
        kept = where(**conditions, missing="keep")
        assert [kept["0"], kept["1"]] == ["", ""] and {**kept, "0": 0, "1": 0} == {**found, "0": 0, "1": 0}


def test_strings_and_booleans(where: Any) -> None:
    texts = [{"id": "a", "score": "x"}, {"id": "b", "score": "y"}, {"id": "c", "score": None}]
    assert where(texts, "string", equals="x") == {"a": "", "b": "score is not 'x'", "c": "score is missing"}
    assert where(texts, "string", one_of=("y", "z"))["a"] == "score is none of 2 values"
    assert where(texts, "string", none_of=("x",)) == {"a": "score is 'x'", "b": "", "c": "score is missing"}
    flags = [{"id": "a", "score": True}, {"id": "b", "score": False}]
    assert where(flags, "bool", equals=False) == {"a": "score is not False", "b": ""}
    assert where([{"id": "a", "score": 0}], "int64", at_most=0) == {"a": ""}


def test_one_row_and_reasons(where: Any) -> None:
    assert where([ROWS[4]], at_least=1.0) == {"4": "score below 1.0"}
    assert where([ROWS[4]], below=0.5) == {"4": "score not below 0.5"}


@pytest.mark.parametrize(
    "conditions",
    [
        {"at_least": 1.0, "at_most": 0.5},
        {"above": 1.0, "at_most": 1.0},
        {"missing": "keep"},
        {"equals": "x", "at_least": 1.0},
        {"one_of": (1, "x")},
        {"at_least": float("nan")},
    ],
)
def test_conditions_that_cannot_be_meant(given_rows: Any, conditions: dict[str, Any]) -> None:
    with pytest.raises(InvalidField, match="Where"):
        Where(rows=given_rows(has={"score": "float64"}), column="score", **conditions)


def test_the_column_must_be_of_the_conditions_type(given_rows: Any) -> None:
    with pytest.raises(MissingColumn, match="'answer' as number"):
        Where(rows=given_rows(), column="answer", at_least=1.0)
    with pytest.raises(MissingColumn, match="'score' as string"):
        Where(rows=given_rows(has={"score": "float64"}), column="score", equals="x")
    with pytest.raises(MissingColumn, match="needs the column 'ifd'"):
        Where(rows=given_rows(), column="ifd")
