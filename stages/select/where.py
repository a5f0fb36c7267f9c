"""Rows whose value in a column fits a condition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graftline.stages.errors import InvalidField
from graftline.stages.rows import Columns
from graftline.stages.select.ranking import missing
from graftline.stages.shapes import Selector, Verdict
from graftline.stages.stage import Context

if TYPE_CHECKING:
    import pyarrow as pa

Value = bool | int | float | str


class Where(Selector):
    """Keeps the rows whose value in a column fits all the conditions given; with none, those that have a value.

    Conditions on two columns are two `Where` after one another. Null and NaN are missing: no condition holds or fails
    for them, `missing` says what becomes of such rows.

    Args:
        column: of numbers, strings or booleans, as the conditions ask.
        at_least: a number, itself included.
        above: a number, itself not included.
        at_most: a number, itself included.
        below: a number, itself not included.
        equals: the one value to keep.
        one_of: the values to keep.
        none_of: values not to keep.
        missing: what becomes of rows without a value: `drop` or `keep`.

    Raises:
        InvalidField: no value can fit, values of two types are given, or nothing is asked at all.
        MissingColumn: the column is not there, or not of the values' type.

    The properties its tests check: each condition against a plain comparison, NaN and null with both `missing`.
    """

    method = "select.where"
    origin = "filtering by a column; no paper"
    specimen: ClassVar[Mapping[str, Any]] = {"at_least": 0.5}

    column: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    equals: Value | None = None
    one_of: tuple[Value, ...] = ()
    none_of: tuple[Value, ...] = ()
    missing: Literal["drop", "keep"] = "drop"

    def check(self) -> None:
        low = max((each for each in (self.at_least, self.above) if each is not None), default=None)
        high = min((each for each in (self.at_most, self.below) if each is not None), default=None)
        open_ended = low == self.above or high == self.below
        if low is not None and high is not None and (low > high or (low == high and open_ended)):
            raise InvalidField(f"nothing is between {low:g} and {high:g}", where="Where", do="change a bound")
        if self.missing == "keep" and not self._values() and low is None and high is None:
            raise InvalidField("keeps every row", where="Where", do="give a condition, or leave missing out")
        if len(self._types()) > 1:
            raise InvalidField(
                f"asks for values of the types {' and '.join(sorted(self._types()))}",
                where="Where",
                do="give values of the column's type",
            )

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"rows": {self.column: next(iter(self._types()), "any")}}

    def select_rows(self, table: pa.Table, context: Context) -> Iterable[Verdict]:
        for row, value in zip(table["id"].to_pylist(), table[self.column].to_pylist(), strict=True):
            if missing(value):
                reason = "" if self.missing == "keep" else f"{self.column} is missing"
            else:
                reason = self._refused(value)
            yield Verdict(row, "filtered" if reason else "kept", reason)

    def _refused(self, value: Any) -> str:
        """Why a value does not fit ("" = it does)."""
        name = self.column
        for bound, word, holds in (
            (self.at_least, "below", lambda bound: value >= bound),
            (self.above, "not above", lambda bound: value > bound),
            (self.at_most, "above", lambda bound: value <= bound),
            (self.below, "not below", lambda bound: value < bound),
            (self.equals, "is not", lambda bound: value == bound),
        ):
            if bound is not None and not holds(bound):
                return f"{name} {word} {bound!r}"
        if self.one_of and value not in self.one_of:
            return f"{name} is none of {len(self.one_of)} values"
        return f"{name} is {value!r}" if value in self.none_of else ""

    def _values(self) -> list[Value]:
        return [*(() if self.equals is None else (self.equals,)), *self.one_of, *self.none_of]

    def _types(self) -> set[str]:
        """Column types that the conditions ask for."""
        bounds = (self.at_least, self.above, self.at_most, self.below)
        given = [*self._values(), *(each for each in bounds if each is not None)]
        return {"bool" if isinstance(each, bool) else "string" if isinstance(each, str) else "number" for each in given}
