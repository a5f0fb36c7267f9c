"""Prepared rows as the loop reads them: an Arrow table, by place, without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftline.stages.rows import FIXED

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.train.plugs import Row


class PreparedRows:
    """Rows of a hidden row stage, sorted by id, so that a place means the same row to every worker. Lists come as numpy
    arrays. On workers the table lies in Ray's object store, which maps it into memory."""

    def __init__(self, table: pa.Table) -> None:
        table = table.sort_by("id")
        self.ids: list[str] = table["id"].to_pylist()
        self._columns = {name: table[name].combine_chunks() for name in table.column_names if name not in FIXED}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> Row:
        row: dict[str, Any] = {"id": self.ids[place]}
        for name, column in self._columns.items():
            scalar = column[place]
            values = getattr(scalar, "values", None)
            row[name] = scalar.as_py() if values is None else values.to_numpy(zero_copy_only=False)
        return row
