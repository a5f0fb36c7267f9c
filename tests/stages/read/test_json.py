"""A JSON list gives the rows of the same objects as JSON lines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graftline.stages.errors import RequestError
from graftline.stages.read import Json, Jsonl

ROWS = [{"prompt": "Why?", "completion": "Because."}, {"prompt": "Wie?", "completion": "So, mit ü."}]


def test_the_same_rows_as_from_lines(folder: Any) -> None:
    listed = folder.read(Json(path=folder.write("a.json", json.dumps(ROWS, indent=2))))
    lines = folder.read(Jsonl(path=folder.write("a.json", "\n".join(map(json.dumps, ROWS)))))
    assert listed == lines


def test_items_that_are_no_rows_fail_alone(folder: Any, outcomes: Any) -> None:
    text = json.dumps([ROWS[0], 3, {"prompt": "x"}, ROWS[1]]).encode().replace(b"Wie?", b"W\xffe?")
    assert outcomes(folder.read(Json(path=folder.write("a.json", text), shape="prompt", limit=3))) == [
        ("1", ""), ("2", "is JSON, but not an object"), ("3", ""),
    ]  # fmt: skip
    made = folder.read(Json(path=folder.write("a.json", text)))
    assert made[3].reason == "has characters that are no Unicode (bad UTF-8 or a lone surrogate)"


def test_a_row_above_max_bytes_fails_alone(folder: Any, outcomes: Any) -> None:
    rows = [ROWS[0], {"prompt": "ü" * 60, "completion": "x"}, ROWS[1]]
    made = folder.read(Json(path=folder.write("a.json", json.dumps(rows)), max_bytes=100))
    assert outcomes(made) == [("1", ""), ("2", "is longer than max_bytes=100"), ("3", "")]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "is not one JSON value .* in line 1"),
        ("\n".join(map(json.dumps, ROWS)), "extra data in line 2.*use read.Jsonl"),
        ('{"data": []}', "not a list"),
        ("[" * 50_000, "cannot be read|that can be read"),
        ("[]", "has no rows"),
        ("[3, 4]", "no row can be read; the first is a.json:1: is JSON, but not an object"),
    ],
)
def test_a_file_that_is_no_list(folder: Any, text: str, what: str) -> None:
    with pytest.raises(RequestError, match=f"(?is){what}"):
        folder.read(Json(path=folder.write("a.json", text)))


def test_rows_are_counted_where_the_file_is_small(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Json(path=folder.write("a.json", json.dumps(ROWS)))
    assert folder.expected(stage).count == 2
    monkeypatch.setattr("graftline.stages.read.json.SMALL", 10)
    assert folder.expected(stage).count is None
