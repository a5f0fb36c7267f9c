"""The k best rows by a column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from graftline.stages.rows import Columns
from graftline.stages.shapes import Selector, Verdict
from graftline.stages.stage import Context

if TYPE_CHECKING:
    import pyarrow as pa


class TopK(Selector):
    """Keeps the `k` rows with the largest (or smallest) value of a numeric column.

    Rows without a value (missing or NaN) rank last. Ties go to the smaller id, so the choice does not depend on how
    rows are partitioned; the test holds that.

    Args:
        by: the column, int64 or float64.
        k: how many rows to keep; all of them where there are fewer.
        largest: keep the largest values, else the smallest.
    """

    method = "select.top_k"
    origin = "sorting by a score; no paper"

    by: str
    k: Annotated[int, Field(ge=1)]
    largest: bool = True

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"rows": {self.by: "number"}}

    def rows_expected(self, rows: Mapping[str, int], file: Callable[[str], str]) -> int | None:
        return min(self.k, rows["rows"]) if "rows" in rows else None

    def select_rows(self, table: pa.Table, context: Context) -> Iterable[Verdict]:
        sign = -1.0 if self.largest else 1.0

        def rank(pair: tuple[str, float | None]) -> tuple[bool, float, str]:
            missing = pair[1] is None or pair[1] != pair[1]
            return (missing, 0.0 if missing else sign * float(pair[1] or 0), pair[0])

        ranked = sorted(zip(table["id"].to_pylist(), table[self.by].to_pylist(), strict=True), key=rank)
        for position, (row, value) in enumerate(ranked):
            if position < self.k:
                yield Verdict(row)
            else:
                yield Verdict(
                    row, "filtered", "no score" if value is None or value != value else f"not in the top {self.k}"
                )
