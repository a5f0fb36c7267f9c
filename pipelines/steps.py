"""One mapper or scorer on a table of rows: batches, the guilty rows singled out, results checked, the ledger asked.

What becomes of a row is one line: its id, the digest of what was read, its outcome and reason, and the columns the
stage made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graftline.pipelines.context import WorkerContext, difference
from graftline.pipelines.failures import ContractBroken, reason
from graftline.pipelines.ledger import RowLedger, columns_read, lines_schema, read_digests
from graftline.pipelines.parts import conformed, guarded, has_columns, mask
from graftline.stages.errors import RowFault
from graftline.stages.rows import schema
from graftline.stages.shapes import Mapper, Scorer

if TYPE_CHECKING:
    import pyarrow as pa

LEFT_OUT = "left out"
"""Reason of a row that a mapper did not return."""


@dataclass
class Dropped:
    """Rows that did not stay, each with its `reason`, by outcome; and the reasons' counts."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"filtered": [], "failed": []})
    reasons: dict[str, Counter[str]] = field(default_factory=lambda: {"filtered": Counter(), "failed": Counter()})


class Step:
    """A mapper or scorer at work.

    Args:
        stage: the stage.
        context: its context.
        ledger: where its lines are kept as they are made (None: it calls no model).
    """

    def __init__(self, stage: Mapper | Scorer, context: WorkerContext, ledger: RowLedger | None = None) -> None:
        self.stage, self.context, self.ledger = stage, context, ledger
        self.result = stage.columns if isinstance(stage, Mapper) else stage.columns_added()
        self.schema = lines_schema(self.result)
        self.unsure: set[str] = set()
        """Rows that failed, but not by a `RowFault`: the next run asks them again."""

    def run(self, table: pa.Table, known: Sequence[str] = ()) -> tuple[pa.Table, Dropped]:
        """The rows that stay, in their order, and those that do not.

        Args:
            table: rows.
            known: the ledger's files that may know some of them.
        """
        import pyarrow as pa

        made = self._made(table) if self.ledger is None else self._kept_in(self.ledger, table, known)
        lines = pa.concat_tables([self.schema.empty_table(), *made])
        at = {row: position for position, row in enumerate(lines["id"].to_pylist())}
        lines = lines.take(pa.array([at[row] for row in table["id"].to_pylist()], pa.int64()))
        stays = mask(outcome == "kept" for outcome in lines["outcome"].to_pylist())
        goes = mask(not each for each in stays.to_pylist())
        return self._staying(table.filter(stays), lines.filter(stays)), self._going(
            table.filter(goes), lines.filter(goes)
        )

    def _staying(self, table: pa.Table, lines: pa.Table) -> pa.Table:
        if isinstance(self.stage, Mapper):
            return conformed(lines, self.stage.columns)
        for name in self.result:
            table = table.append_column(name, lines[name])
        return conformed(table, self.stage.columns)

    def _going(self, table: pa.Table, lines: pa.Table) -> Dropped:
        """Dropped rows as they came, with what the stage made of them before it dropped them."""
        dropped = Dropped()
        for row, line in zip(table.to_pylist(), lines.to_pylist(), strict=True):
            made = {name: line[name] for name in self.result if line[name] is not None}
            dropped.rows[line["outcome"]].append({**row, **made, "reason": line["reason"]})
            dropped.reasons[line["outcome"]][line["reason"]] += 1
        return dropped

    def _kept_in(self, ledger: RowLedger, table: pa.Table, names: Sequence[str]) -> Iterator[pa.Table]:
        """The lines the ledger knows, then those it does not: each batch is in it before it is used."""
        import pyarrow as pa

        ids = table["id"].to_pylist()
        read = dict(zip(ids, read_digests(table, columns_read(self.stage, table.column_names)), strict=True))
        known = ledger.read(names)
        yield pa.Table.from_pylist([known[pair] for pair in read.items() if pair in known], schema=self.schema)
        missing = table.filter(mask(pair not in known for pair in read.items()))
        for start in range(0, missing.num_rows, self.stage.batch_size):
            batch = missing.slice(start, self.stage.batch_size)
            token = ledger.token(batch["id"].to_pylist())
            ledger.ask(token, batch.num_rows)
            before = replace(self.context.calls)
            with self.context.paying_later() as pay:
                lines = pa.concat_tables([self.schema.empty_table(), *self._made(batch)])
                marks = pa.array([read[row] for row in lines["id"].to_pylist()], pa.string())
                lines = lines.set_column(self.schema.get_field_index("read"), "read", marks)
                cost = difference(self.context.calls, before)
                sure = lines.filter(mask(row not in self.unsure for row in lines["id"].to_pylist()))
                ledger.write(token, sure, cost.to_dict() | {"why": cost.why})
            pay()
            yield lines

    def _made(self, table: pa.Table) -> Iterator[pa.Table]:
        """Lines of all rows, batch by batch."""
        for start in range(0, table.num_rows, self.stage.batch_size):
            for rows, lines, error in guarded(self._called, table.slice(start, self.stage.batch_size)):
                if error is None:
                    yield lines
                    continue
                ids = rows["id"].to_pylist()
                if not isinstance(error, RowFault):
                    self.unsure.update(ids)
                yield self._lines(ids, "failed", reason(error))

    def _called(self, batch: pa.Table) -> pa.Table:
        """The stage's function on a batch, checked and cast."""
        if isinstance(self.stage, Mapper):
            return self._mapped(batch, self.stage.map_rows(batch, self.context))
        return self._scored(batch, self.stage.score_rows(batch, self.context))

    def _mapped(self, batch: pa.Table, result: Any) -> pa.Table:
        import pyarrow as pa

        has_columns(result, self.stage.columns, self.stage.name, "map_rows")
        missing = dict.fromkeys(batch["id"].to_pylist())
        for row in result["id"].to_pylist():
            if row not in missing:
                raise ContractBroken(
                    f"map_rows returned the id {row!r}, which its batch does not have, or it returned it twice",
                    where=self.stage.name,
                    do="keep each row's id",
                )
            del missing[row]
        reasons = result["filtered"].to_pylist() if "filtered" in result.column_names else [None] * result.num_rows
        made = conformed(result, self.stage.columns)
        outcomes = ["kept" if reason is None else "filtered" for reason in reasons]
        for position, (name, values) in enumerate(
            (("read", [None] * len(reasons)), ("outcome", outcomes), ("reason", reasons))
        ):
            made = made.add_column(position, name, pa.array(values, pa.string()))
        return pa.concat_tables([made.select(self.schema.names), self._lines(list(missing), "filtered", LEFT_OUT)])

    def _scored(self, batch: pa.Table, result: Any) -> pa.Table:
        import pyarrow as pa

        name, columns = self.stage.name, schema(self.result)
        if not isinstance(result, Mapping) or set(result) != set(columns.names):
            given = sorted(result) if isinstance(result, Mapping) else type(result).__name__
            raise ContractBroken(
                f"score_rows returned {given}, not {sorted(columns.names)}",
                where=name,
                do="return a mapping of the columns it adds",
            )
        arrays = []
        for each in columns:
            if len(result[each.name]) != batch.num_rows:
                raise ContractBroken(
                    f"score_rows returned {len(result[each.name])} values of {each.name!r} for {batch.num_rows} rows",
                    where=name,
                    do="return one value a row, None where it is missing",
                )
            try:
                arrays.append(pa.array(result[each.name], each.type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise ContractBroken(
                    f"score_rows returned values of {each.name!r} that are no {each.type}: {error}",
                    where=name,
                    do="return what `adds` declares",
                ) from error
        kept = self._lines(batch["id"].to_pylist(), "kept", None).select(["id", "read", "outcome", "reason"])
        for each, values in zip(columns, arrays, strict=True):
            kept = kept.append_column(each, values)
        return kept.select(self.schema.names)

    def _lines(self, ids: Sequence[str], outcome: str, reason: str | None) -> pa.Table:
        import pyarrow as pa

        return pa.Table.from_pylist([{"id": row, "outcome": outcome, "reason": reason} for row in ids], self.schema)
