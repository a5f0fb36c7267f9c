"""The k best rows by a column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from graftline.stages.expected import Expected, Given
from graftline.stages.rows import Columns
from graftline.stages.select.ranking import missing, ranked, refuse_unscored
from graftline.stages.shapes import Selector, Verdict
from graftline.stages.stage import Context

if TYPE_CHECKING:
    import pyarrow as pa


class TopK(Selector):
    """Keeps the `k` rows with the largest (or smallest) value of a numeric column.

    Rows without a value (missing or NaN) rank last; where no row has one it stops. Ties go to the smaller id, so the
    choice does not depend on how rows are partitioned; the test holds that.

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

    def expected(self, given: Given) -> Expected:
        return Expected(given.rows(self.rows).at_most(self.k))

    def select_rows(self, table: pa.Table, context: Context) -> Iterable[Verdict]:
        ids, scores = table["id"].to_pylist(), table[self.by].to_pylist()
        refuse_unscored(scores, self.by, self.name)
        for position, place in enumerate(ranked(ids, scores, self.largest)):
            if position < self.k:
                yield Verdict(ids[place])
            else:
                reason = "no score" if missing(scores[place]) else f"not in the top {self.k}"
                yield Verdict(ids[place], "filtered", reason)
