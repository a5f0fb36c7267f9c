"""Rows of several inputs as one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from graftline.stages.errors import MissingColumn
from graftline.stages.rows import Columns
from graftline.stages.shapes import Made, Source
from graftline.stages.stage import Context, Rows


class Concat(Source):
    """All rows of several inputs, with the columns that all of them have; a row that comes twice is kept once.

    Args:
        rows: the inputs, at least one.

    Raises:
        MissingColumn: the inputs have a column in two types.
    """

    method = "select.concat"
    origin = "concatenation; no paper"

    rows: Annotated[tuple[Rows, ...], Field(min_length=1)]

    def columns_made(self) -> Columns:
        common = dict(self.rows[0].columns)
        for index, stage in enumerate(self.rows[1:], 1):
            for column, type_ in stage.columns.items():
                if common.get(column, type_) != type_:
                    raise MissingColumn(
                        f"has {column!r} as {type_}, not {common[column]}",
                        where=f"Concat.rows.{index}",
                        do="give the column one type, or two names",
                    )
            common = {name: type_ for name, type_ in common.items() if name in stage.columns}
        return common

    def make_rows(self, context: Context, **inputs: Any) -> Iterator[Made]:
        seen: set[str] = set()
        for opened in inputs["rows"]:
            for row in opened.rows(list(self.columns)).to_pylist():
                if row["id"] in seen:
                    yield Made(row, "filtered", "in an earlier input")
                else:
                    seen.add(row["id"])
                    yield Made(row)
