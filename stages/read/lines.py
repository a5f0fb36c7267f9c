"""Files as bytes: opened here or on a remote filesystem, and read line by line with a limit."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from graftline.stages.errors import FileMissing, RequestError

BOM = b"\xef\xbb\xbf"
OTHER_FILES = (
    ((b"\xff\xfe", b"\xfe\xff"), "is UTF-16, not UTF-8", "save it as UTF-8"),
    ((b"PAR1",), "is Parquet, not text", "use read.Parquet"),
    ((b"\x1f\x8b",), "is compressed with gzip", "unpack it"),
    ((b"PK\x03\x04",), "is a zip archive (Excel files are), not text", "export it as CSV or JSON lines"),
)
"""First bytes of files that are often given by mistake."""
MISSING: dict[type[Exception], str] = {
    FileNotFoundError: "there is no such file",
    IsADirectoryError: "is a folder, not a file",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end. `raw` holds its first bytes, up to the limit; `length` counts all (above the limit a
    carriage return may be among them)."""

    number: int
    raw: bytes
    length: int


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file for reading, from any `pyarrow.fs` filesystem where the path is a URI.

    Raises:
        FileMissing: it is not there, is a folder, or cannot be opened.
    """
    try:
        if "://" in path:
            import pyarrow.fs as fs

            filesystem, inner = fs.FileSystem.from_uri(path)
            stream = io.BufferedReader(filesystem.open_input_file(inner), 1 << 20)
        else:
            stream = io.BufferedReader(io.FileIO(path), 1 << 20)
    except (OSError, ValueError) as error:  # Arrow's errors are both
        raise FileMissing(
            MISSING.get(type(error), f"cannot be opened: {error}"),
            where=path,
            do="relative paths count from the pipeline file's folder",
        ) from error
    with stream:
        yield stream


@contextmanager
def opened_text(path: str) -> Iterator[BinaryIO]:
    """A text file, after its byte order mark.

    Raises:
        RequestError: it is empty, or its first bytes are those of no UTF-8 text.
    """
    with opened(path) as stream:
        head = stream.read(4)
        if not head:
            raise RequestError("the file is empty", where=path, do="give a file with rows")
        for starts, what, do in OTHER_FILES:
            if head.startswith(starts):
                raise RequestError(what, where=path, do=do)
        if b"\x00" in head:
            raise RequestError("is no UTF-8 text (it has zero bytes)", where=path, do="save it as UTF-8")
        stream.seek(len(BOM) if head.startswith(BOM) else 0)
        yield stream


def lines(stream: BinaryIO, most: int, first: int = 1) -> Iterator[Line]:
    """The lines of a file, holding `most` bytes of one at a time.

    Args:
        most: bytes of a line that are kept.
        first: number of the first line.
    """
    number = first
    while chunk := stream.readline(most + 2):  # and the line's end
        length, end = len(chunk), chunk
        while not end.endswith(b"\n") and (end := stream.readline(1 << 16)):
            length += len(end)
        yield Line(number, chunk.rstrip(b"\r\n")[:most], length - len(end) + len(end.rstrip(b"\r\n")))
        number += 1
