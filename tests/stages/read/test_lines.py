"""Lines are numbered, bounded in memory, and files given by mistake are recognised."""

from __future__ import annotations

import gzip
import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.errors import FileMissing, RequestError
from graftline.stages.read.lines import lines, opened, opened_text


@given(st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), max_size=8))
def test_lines_are_those_of_the_file_and_keep_their_first_bytes(texts: list[bytes]) -> None:
    for end in (b"\n", b"\r\n"):
        found = list(lines(io.BytesIO(end.join(texts)), 5))
        expected = texts if texts and texts[-1] else texts[:-1]  # an empty end is no line
        assert [(line.number, line.raw, min(line.length, 6)) for line in found] == [
            (number, text[:5], min(len(text), 6)) for number, text in enumerate(expected, 1)
        ]


def test_a_long_line_is_not_held() -> None:
    stream = io.BytesIO(b"x" * 20_000_000 + b"\nnext")
    tracemalloc.start()
    found = list(lines(stream, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(line.length, len(line.raw)) for line in found] == [(20_000_000, 1000), (4, 4)]
    assert peak < 1_000_000


def test_missing_files_and_folders_are_said(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="there is no such file"), opened(str(tmp_path / "no.jsonl")):
        pass
    with pytest.raises(FileMissing, match="is a folder"), opened(str(tmp_path)):
        pass
    with pytest.raises(FileMissing, match="no such file"), opened((tmp_path / "no.jsonl").as_uri()):
        pass


def test_uris_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfab\ncd")
    for name in (str(path), path.as_uri()):
        with opened_text(name) as stream:
            assert [line.raw for line in lines(stream, 10)] == [b"ab", b"cd"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "zero bytes"),
        ('{"a": 1}'.encode("utf-32-le"), "zero bytes"),
        (gzip.compress(b"{}"), "gzip"),
        (b"PAR1....", "read.Parquet"),
        (b"PK\x03\x04....", "zip"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=what) as caught, opened_text(str(path)):
        pass
    assert caught.value.where == str(path) and caught.value.do
