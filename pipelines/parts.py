"""Rows on their way into Parquet files: cast to the declared schema, named by their ids, zstd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftline.pipelines.artefacts import entry
from graftline.pipelines.failures import ContractBroken, is_world
from graftline.pipelines.store import Store
from graftline.stages.rows import Columns, digest, schema

if TYPE_CHECKING:
    import pyarrow as pa

REASON: Columns = {"reason": "string"}


@dataclass
class Parts:
    """Writes the parts of one attempt and remembers them.

    Args:
        store: the store.
        attempt: the attempt's folder in it.
        files: entries of what was written, for the manifest.
    """

    store: Store
    attempt: str
    files: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: str, table: pa.Table, name: str = "") -> str:
        """Writes a table as one part of a folder, named by its ids unless a name is given."""
        file = f"{folder}/part-{name or ids_digest(table['id'].to_pylist())}.parquet"
        content = encoded(table)
        self.store.write_bytes(f"{self.attempt}/{file}", content)
        self.files[file] = entry(content, rows=table.num_rows)
        return file

    def read(self, folder: str, columns: Columns) -> pa.Table:
        """All rows of a folder."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        paths = [f"{self.attempt}/{name}" for name in sorted(self.files) if name.startswith(f"{folder}/")]
        tables = [pq.read_table(pa.BufferReader(self.store.read_bytes(path))) for path in paths]
        return pa.concat_tables([schema(columns).empty_table(), *tables])


def ids_digest(ids: Sequence[str | None]) -> str:
    """The name of a part: 16 hex digits over its ids."""
    return digest(list(ids))[:16]


def encoded(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def mask(values: Iterable[bool]) -> pa.BooleanArray:
    """What `Table.filter` takes; Arrow itself cannot tell the type of an empty one."""
    import pyarrow as pa

    return pa.array(list(values), pa.bool_())


def conformed(table: pa.Table, columns: Columns) -> pa.Table:
    """A table with exactly these columns, cast without loss. Raises Arrow's errors where a value cannot be."""
    return table.select(list(columns)).cast(schema(columns))


def filled(rows: Sequence[Mapping[str, Any]], columns: Columns) -> pa.Table:
    """Rows as a table of these columns; what a row lacks is null. Raises where a value cannot be."""
    import pyarrow as pa

    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema(columns))


def lenient(rows: Sequence[Mapping[str, Any]], columns: Columns) -> pa.Table:
    """Dropped rows as a table: a value that its column cannot hold is null (it may be why the row was dropped)."""
    import pyarrow as pa

    try:
        return filled(rows, columns)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        kinds = schema(columns)

        def fitting(name: str, value: Any) -> Any:
            if isinstance(value, str):
                value = value.encode("utf-8", "replace").decode()
            try:
                return pa.scalar(value, kinds.field(name).type).as_py()
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                return None

        return filled([{name: fitting(name, row.get(name)) for name in columns} for row in rows], columns)


def guarded(function: Callable[[pa.Table], Any], table: pa.Table) -> Iterator[tuple[pa.Table, Any, Exception | None]]:
    """Calls a function with a batch; an exception is bisected to the guilty rows.

    Yields batches in their order, each with the function's result and None, or (one row) with None and its error.
    Errors of the world pass through.
    """
    waiting = [table]
    while waiting:
        batch = waiting.pop()
        try:
            result = function(batch)
        except Exception as error:
            if is_world(error):
                raise
            if batch.num_rows <= 1:
                yield batch, None, error
            else:
                half = batch.num_rows // 2
                waiting += [batch.slice(half), batch.slice(0, half)]
        else:
            yield batch, result, None


def has_columns(table: Any, columns: Columns, stage: str, function: str) -> None:
    """Refuses what is no Arrow table, or lacks a declared column."""
    import pyarrow as pa

    if not isinstance(table, pa.Table):
        raise ContractBroken(
            f"{function} returned {type(table).__name__}", where=stage, do="return a pyarrow.Table of the batch's rows"
        )
    if missing := [name for name in columns if name not in table.column_names]:
        raise ContractBroken(
            f"{function} returned no column {missing[0]!r}", where=stage, do="return all columns the stage declares"
        )
