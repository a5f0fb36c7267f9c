"""Rows from JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator

from graftline.stages.read.from_file import FileSource, Record, too_long
from graftline.stages.read.lines import lines, opened_text


class Jsonl(FileSource):
    """Reads one JSON object a line, one line at a time. Empty lines are skipped; rows are numbered by line.

    Takes the arguments of `FileSource` (stages/read/from_file.py): `path`, `shape`, or `prompt`, `answer`, `system`
    as templates; `group`, `keep`, `limit`, `max_bytes`. The property its test checks: whatever bytes a line holds, it
    fails alone and the others are read.
    """

    method = "read.jsonl"
    origin = "the common shapes of instruction data; no paper"

    def records(self, path: str) -> Iterator[Record]:
        with opened_text(path) as stream:
            for line in lines(stream, self.max_bytes):
                if line.length > self.max_bytes:
                    yield Record(line.number, None, too_long(self.max_bytes), line.raw)
                elif line.raw.strip():
                    yield _record(line.number, line.raw)


def _record(number: int, raw: bytes) -> Record:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return Record(number, None, "is not UTF-8", raw)
    except json.JSONDecodeError as error:
        return Record(number, None, f"is not JSON ({error.msg.lower()})", raw)
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets nested too deep
        return Record(number, None, "is not JSON that can be read", raw)
    if not isinstance(value, dict):
        return Record(number, None, "is JSON, but not an object", raw)
    return Record(number, value, raw=raw)
