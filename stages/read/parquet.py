"""Rows from Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import RequestError
from graftline.stages.read.from_file import FileSource, Record
from graftline.stages.read.lines import opened

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 256
UNREADABLE = "has a value that cannot be read (bad UTF-8, a date out of range)"


class Parquet(FileSource):
    """Reads a Parquet file, a batch of rows at a time. Rows are numbered from 1.

    Takes the arguments of `FileSource` (stages/read/from_file.py). The property its test checks: the same rows as
    from JSON lines.

    Raises:
        RequestError: the file is not Parquet, or is broken.
    """

    method = "read.parquet"
    origin = "the common shapes of instruction data; no paper"

    def count(self, path: str) -> int | None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except pa.ArrowException:
            return None

    def records(self, path: str) -> Iterator[Record]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 0
        with opened(path) as stream:
            try:
                for batch in pq.ParquetFile(stream).iter_batches(batch_size=BATCH):
                    for row in _rows(batch):
                        number += 1
                        yield Record(number, row, "" if row is not None else UNREADABLE)
            except (pa.ArrowException, OSError) as error:
                what = f"is not Parquet that can be read ({str(error).splitlines()[0]})"
                raise RequestError(what, where=path, do="write the file again") from error


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """A batch's rows; None for one with a value that cannot be."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for position in range(batch.num_rows):
            try:
                yield from batch.slice(position, 1).to_pylist()
            except (ValueError, OverflowError):
                yield None
