"""Rows from one JSON list."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from graftline.stages.errors import RequestError
from graftline.stages.read.from_file import FileSource, Record
from graftline.stages.read.lines import opened_text

SMALL = 4 << 20


class Json(FileSource):
    """Reads a file that is one JSON list of objects. The whole file is held in memory; rows are numbered from 1.

    Takes the arguments of `FileSource` (stages/read/from_file.py). The property its test checks: the same rows as
    from JSON lines.

    Raises:
        RequestError: the file is not JSON, or no list.
    """

    method = "read.json"
    origin = "the common shapes of instruction data; no paper"

    def count(self, path: str) -> int | None:
        """Known for files of up to 4 MB, which are simply read."""
        if os.path.getsize(path) > SMALL:
            return None
        return sum(1 for _ in self.records(path))

    def records(self, path: str) -> Iterator[Record]:
        with opened_text(path) as stream:
            text = stream.read().decode("utf-8", "surrogateescape")  # a row with broken bytes fails alone, later
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            lines = error.msg == "Extra data"
            raise RequestError(
                f"is not one JSON value ({error.msg.lower()} in line {error.lineno})",
                where=path,
                do="use read.Jsonl for an object a line" if lines else "correct the file",
            ) from None
        except (ValueError, RecursionError) as error:
            raise RequestError(f"is not JSON that can be read ({error})", where=path, do="correct the file") from None
        if not isinstance(rows, list):
            raise RequestError("is JSON, but not a list", where=path, do="give a list of objects")
        for number, row in enumerate(rows, 1):
            if isinstance(row, dict):
                yield Record(number, row)
            else:
                yield Record(number, None, "is JSON, but not an object", json.dumps(row).encode())
