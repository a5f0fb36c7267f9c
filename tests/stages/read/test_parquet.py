"""Parquet gives the rows of the same records as JSON lines."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graftline.stages.errors import RequestError
from graftline.stages.read import Jsonl, Parquet

ROWS = [
    {"messages": [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": "Because."}]}
    for number in range(600)
]


def test_the_same_rows_as_from_lines(folder: Any) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), folder.file("a"), row_group_size=100)
    found = folder.read(Parquet(path="a"))
    lines = folder.read(Jsonl(path=folder.write("a", "\n".join(map(json.dumps, ROWS)))))
    assert found == lines and len(found) == 600


def test_any_columns_by_template(folder: Any) -> None:
    table = pa.table(
        {"n": [1, 2], "day": [datetime.date(2024, 1, 2), None], "queue": pa.array(["a", "b"]).dictionary_encode()}
    )
    pq.write_table(table, folder.file("a.parquet"))
    made = folder.read(Parquet(path="a.parquet", prompt="{n} {day}", answer="{queue}", keep=("n",)))
    assert made[0].row["messages"][0]["content"] == "1 2024-01-02" and made[0].row["n"] == "1"
    assert made[1].reason == "has no value in the column 'day'"


def test_a_value_that_cannot_be_read_fails_alone(folder: Any, outcomes: Any) -> None:
    text = pa.array([b"fine", b"caf\xe9", b"good"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": text}), folder.file("a.parquet"))
    made = folder.read(Parquet(path="a.parquet", prompt="{text}"))
    reason = "has a value that cannot be read (bad UTF-8, a date out of range)"
    assert outcomes(made) == [("1", ""), ("2", reason), ("3", "")]


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really PAR1", b'{"text": "x"}\n' * 20])
def test_files_that_are_no_parquet(folder: Any, content: bytes) -> None:
    source = Parquet(path=folder.write("a.parquet", content))
    with pytest.raises(RequestError, match="is not Parquet"):
        folder.read(source)
    with pytest.raises(RequestError, match="is not Parquet"):
        source.preflight(folder.file)


def test_a_file_without_rows(folder: Any) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS[:1]).slice(1), folder.file("a.parquet"))
    with pytest.raises(RequestError, match="has no rows"):
        folder.read(Parquet(path="a.parquet"))


def test_rows_are_counted_by_the_files_own_word(folder: Any) -> None:
    pq.write_table(pa.table({"prompt": list("abcd")}), folder.file("a.parquet"))
    assert folder.expected(Parquet(path="a.parquet")).count == 4
    assert folder.expected(Parquet(path=folder.write("b.parquet", "no Parquet"))).count is None
