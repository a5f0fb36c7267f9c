"""Rows from comma-separated values."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from graftline.stages.errors import RequestError
from graftline.stages.read.from_file import FileSource, Record, too_long
from graftline.stages.read.lines import Line, lines, opened_text


class Csv(FileSource):
    """Reads a CSV file whose first line names the columns; quoted fields may hold line breaks. Rows are numbered by
    the line they start in.

    Takes the arguments of `FileSource` (stages/read/from_file.py), and:

    Args:
        delimiter: one character (`"\\t"` for tab-separated values).

    A quote that is never closed fails the line it stands in, not the rest of the file: its test checks that, and that
    the rows are those of the same records as JSON lines.

    Raises:
        RequestError: the first line does not name each column once.
    """

    method = "read.csv"
    origin = "the common shapes of instruction data; no paper"

    delimiter: Annotated[str, Field(min_length=1, max_length=1, pattern=r'[^"\r\n]')] = ","

    def count(self, path: str) -> int | None:
        lines = super().count(path)
        return max(0, lines - 1) if lines else lines  # the first names the columns

    def records(self, path: str) -> Iterator[Record]:
        csv.field_size_limit(max(csv.field_size_limit(), self.max_bytes))
        names: list[str] | None = None
        with opened_text(path) as stream:
            for number, raw, fields, fault in self._parsed(lines(stream, self.max_bytes)):
                if names is None:
                    names = _header(fields, fault, path)
                elif not fault and len(fields) == len(names):
                    yield Record(number, dict(zip(names, fields, strict=True)))
                else:
                    fault = fault or f"has {len(fields)} fields, the first line has {len(names)}"
                    yield Record(number, None, fault, raw)

    def _parsed(self, source: Iterator[Line]) -> Iterator[tuple[int, bytes, list[str], str]]:
        """Number, bytes, fields and fault of each record. A record with an open quote goes on in the next lines; where
        that gives none, its first line alone is at fault and the others are looked at again."""
        waiting: deque[Line] = deque()
        while line := waiting.popleft() if waiting else next(source, None):
            if not line.raw.strip():
                continue
            raw, (fields, fault) = line.raw, self._fields(line.raw, line.length)
            if fault and _opens(line) and line.length <= self.max_bytes:
                taken, length, is_open = [line], line.length, True
                while is_open and length <= self.max_bytes:
                    more = waiting.popleft() if waiting else next(source, None)
                    if more is None:
                        break
                    taken.append(more)
                    length += more.length + 1
                    is_open ^= _opens(more)
                joined = b"\n".join(each.raw for each in taken)
                whole, wrong = ([], "open") if is_open else self._fields(joined, length)
                if wrong:
                    waiting.extendleft(reversed(taken[1:]))
                    fault = "has a quote that is not closed"
                else:
                    raw, fields, fault = joined, whole, ""
            yield line.number, raw, fields, fault

    def _fields(self, raw: bytes, length: int) -> tuple[list[str], str]:
        """A record's fields, or why it has none."""
        if length > self.max_bytes:
            return [], too_long(self.max_bytes)
        try:
            text = io.StringIO(raw.decode("utf-8"), newline="")
            rows = list(csv.reader(text, delimiter=self.delimiter, strict=True))
        except UnicodeDecodeError:
            return [], "is not UTF-8"
        except csv.Error as error:
            return [], f"is not CSV ({error})"
        return (rows[0], "") if len(rows) == 1 else ([], "is not CSV (a line ends inside it)")


def _opens(line: Line) -> bool:
    return bool(line.raw.count(b'"') % 2)


def _header(fields: list[str], fault: str, path: str) -> list[str]:
    names = [name.strip() for name in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if fault or not all(names) or twice:
        what = fault or (f"names {twice[0]!r} twice" if twice else "names a column with nothing")
        raise RequestError(f"the first line {what}", where=path, do="name each column once in the first line")
    return names
