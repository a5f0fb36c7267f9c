"""CSV: quoted fields, and faults that stay in their line."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField, RequestError
from graftline.stages.read import Csv

HEADER = "text,queue\n"


def tickets(path: str, **more: Any) -> Csv:
    return Csv(path=path, prompt="{text}", answer="{queue}", **more)


def texts(made: Any) -> list[str]:
    return [each.row["messages"][0]["content"] for each in made if each.outcome == "kept"]


cell = st.text(st.sampled_from('ab ,;"\n'), min_size=1, max_size=8).filter(str.strip)


@given(rows=st.lists(cell, min_size=1, max_size=6), delimiter=st.sampled_from(",;\t"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_csv_module_writes_is_read(folder: Any, rows: list[str], delimiter: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n")
    writer.writerows([("text", "queue"), *((text, "x") for text in rows)])
    made = folder.read(tickets(folder.write("a.csv", buffer.getvalue()), delimiter=delimiter))
    assert texts(made) == [text.strip() for text in rows]


def test_rows_are_numbered_by_their_first_line(folder: Any, outcomes: Any) -> None:
    made = folder.read(tickets(folder.write("a.csv", HEADER + 'one,x\n"two\nlines ""q""\n\nthree",x\n\nfour,x\n')))
    assert outcomes(made) == [("2", ""), ("3", ""), ("8", "")]
    assert texts(made)[1] == 'two\nlines "q"\n\nthree'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"one", "has 1 fields, the first line has 2"),
        (b"a,b,c", "has 3 fields, the first line has 2"),
        (b'a,"b', "has a quote that is not closed"),
        (b'"a"b,c', "is not CSV (',' expected after '\"')"),
        (b"caf\xe9,x", "is not UTF-8"),
        (b"a\x00b,x", "has a zero character (NUL)"),
        (b"a,", "the answer is empty"),
        (b"a," + b"y" * 2000, "is longer than max_bytes=1,000"),
    ],
)
def test_a_fault_stays_in_its_line(folder: Any, outcomes: Any, line: bytes, reason: str) -> None:
    content = HEADER.encode() + b"\n".join([b"good,x", line, b"good,x", b'"quo""ted",x', b"good,x"])
    made = folder.read(tickets(folder.write("a.csv", content), max_bytes=1000))
    assert outcomes(made) == [("2", ""), ("3", reason), ("4", ""), ("5", ""), ("6", "")]


def test_a_quote_inside_a_field_swallows_nothing(folder: Any, outcomes: Any) -> None:
    rows = ['5" screen,x', "good,x", 'so "quoted,x', "good,x", '"open,x', "good,x", '"again,x', "good,x"]
    made = folder.read(tickets(folder.write("a.csv", HEADER + "\n".join(rows))))
    assert [number for number, reason in outcomes(made) if not reason] == ["2", "3", "4", "5", "7", "9"]


def test_fields_longer_than_the_modules_limit(folder: Any) -> None:
    made = folder.read(tickets(folder.write("a.csv", f"{HEADER}{'y' * 300_000},x\n")))
    assert len(texts(made)[0]) == 300_000


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("text,text\na,b\n", "names 'text' twice"),
        ("text,\na,b\n", "names a column with nothing"),
        ('text,"queue\na,b\n', "quote that is not closed"),
        ("text,queue\n", "has no rows"),
        ("text,label\na,b\n", r"no column 'queue' \(it has text, label\)"),
    ],
)
def test_a_first_line_that_names_no_columns(folder: Any, content: str, what: str) -> None:
    with pytest.raises(RequestError, match=what):
        folder.read(tickets(folder.write("a.csv", content)))


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n"])
def test_delimiters_are_one_character(delimiter: str) -> None:
    with pytest.raises(InvalidField, match=r"Csv\.delimiter"):
        Csv(path="a.csv", delimiter=delimiter)


def test_rows_are_counted_without_the_first_line(folder: Any) -> None:
    assert folder.expected(Csv(path=folder.write("a.csv", "prompt,answer\na,b\nc,d\n"))).count == 2
    assert folder.expected(Csv(path=folder.write("empty.csv", ""))).count == 0
