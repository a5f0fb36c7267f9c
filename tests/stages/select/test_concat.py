"""All rows of all inputs, each once, with the columns they share."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages.errors import InvalidField, MissingColumn
from graftline.stages.rows import FIXED
from graftline.stages.select import Concat


class Opened:
    """An artefact that holds a table."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def rows(self, columns: list[str]) -> Any:
        return self.table.select(columns)


def test_rows_of_all_inputs_each_once(given_rows: Any, table: Any, context: Any) -> None:
    stage = Concat(rows=(given_rows(has={"score": "float64"}), given_rows()))
    assert dict(stage.columns) == FIXED
    first = Opened(table([{"id": "b", "answer": "x", "score": 1.0}, {"id": "a"}], score="float64"))
    second = Opened(table([{"id": "c"}, {"id": "b", "answer": "y"}]))
    made = list(stage.make_rows(context, rows=(first, second)))
    assert [(each.row["id"], each.outcome) for each in made] == [
        ("a", "kept"), ("b", "kept"), ("b", "filtered"), ("c", "kept"),
    ]  # fmt: skip
    assert made[1].row["answer"] == "x" and made[2].reason == "in an earlier input"
    assert all(set(each.row) == set(FIXED) for each in made)


def test_columns_must_agree(given_rows: Any) -> None:
    with pytest.raises(MissingColumn, match=r"Concat\.rows\.1"):
        Concat(rows=(given_rows(has={"score": "float64"}), given_rows(has={"score": "int64"})))
    with pytest.raises(InvalidField):
        Concat(rows=())
