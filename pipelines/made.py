"""Rows that a source or rounds stage makes, from `Made` to Parquet parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from graftline.pipelines.account import Account
from graftline.pipelines.failures import ContractBroken, reason
from graftline.pipelines.parts import REASON, Parts, filled, guarded, lenient
from graftline.stages.artefact import Artefact
from graftline.stages.rows import Columns, join_groups, row_id
from graftline.stages.shapes import Made
from graftline.stages.stage import Stage

CHUNK = 20_000
"""Rows that are written as one part."""
NOT_CONTENT = ("id", "parents", "group", "source", "gen")


class MadeRows:
    """Takes rows as they are made; fills in ids, parents and groups; writes them; keeps the account.

    Args:
        stage: what makes them.
        parts: where they are written.
        inputs: its rows inputs: rows with their ids are carried, their groups go to the rows made from them.
    """

    def __init__(self, stage: Stage, parts: Parts, inputs: Iterable[Artefact]) -> None:
        self.stage, self.parts, self.account = stage, parts, Account()
        self.columns: Columns = stage.columns
        self.groups: dict[str, str] = {}
        for artefact in inputs:
            self.account.given += artefact.count
            names = [name for name in ("id", "group") if name in artefact.dataset().schema.names]
            table = artefact.rows(names)
            groups = table["group"].to_pylist() if "group" in names else [None] * table.num_rows
            for row, group in zip(table["id"].to_pylist(), groups, strict=True):
                self.groups[row] = group or row
        self._seen: dict[str, int] = {}
        self._kept: set[str] = set()
        self._rows: dict[str, list[dict[str, Any]]] = {"kept": [], "filtered": [], "failed": []}

    def take(self, made: Iterable[Made], told: Callable[[int], None]) -> None:
        """Takes all rows; `told` hears how many there are so far."""
        count = 0
        for count, each in enumerate(made, 1):
            self._take(each)
            if count % 256 == 0:
                told(count)
        for outcome in self._rows:
            self._write(outcome)
        told(count)

    def _take(self, made: Made) -> None:
        if not isinstance(made, Made) or made.outcome not in self._rows:
            raise ContractBroken(f"made {made!r}", where=self.stage.name, do="yield Made(row, outcome, reason)")
        row = self._completed(made.row)
        if row["id"] in self.groups:
            self.account.carried += 1
        else:
            self.account.created += 1
        if made.outcome == "kept":
            if row["id"] in self._kept:
                raise ContractBroken(
                    f"made two rows with the id {row['id']!r}",
                    where=self.stage.name,
                    do="leave the id empty, or filter one",
                )
            self._kept.add(row["id"])
        else:
            row["reason"] = made.reason or made.outcome
        self._rows[made.outcome].append(row)
        if len(self._rows[made.outcome]) >= CHUNK:
            self._write(made.outcome)

    def _completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        row = dict(given)
        parents = row["parents"] = list(row.get("parents") or ())
        if not row.get("id"):
            content = {name: value for name, value in row.items() if name not in NOT_CONTENT}
            first = row_id(parents, content)
            count = self._seen[first] = self._seen.get(first, -1) + 1
            row["id"] = first if not count else row_id(parents, content, count)
        if not row.get("group"):
            known = [self.groups[parent] for parent in parents if parent in self.groups]
            row["group"] = join_groups(known) if known else self.groups.get(row["id"], row["id"])
        row["source"] = row.get("source") or ""
        return row

    def _write(self, outcome: str) -> None:
        """Writes what is waiting; a kept row that its columns cannot hold has failed."""
        rows, self._rows[outcome] = self._rows[outcome], []
        if not rows:
            return
        rows.sort(key=lambda row: str(row["id"]))
        if outcome == "kept":
            self._write_kept(rows)
            return
        counted = self.account.filtered if outcome == "filtered" else self.account.failed
        counted.update(row["reason"] for row in rows)
        self.parts.write(outcome, lenient(rows, {**self.columns, **REASON}))

    def _write_kept(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa

        fine: list[dict[str, Any]] = []
        positions = pa.table({"row": list(range(len(rows)))})

        def check(batch: pa.Table) -> None:
            filled([rows[position] for position in batch["row"].to_pylist()], self.columns)

        for batch, _, error in guarded(check, positions):
            taken = [rows[position] for position in batch["row"].to_pylist()]
            if error is not None:
                for row in taken:
                    self._kept.discard(row["id"])
                    self._rows["failed"].append({**row, "reason": reason(error)})
            else:
                fine += taken
        if fine:
            self.account.kept += len(fine)
            self.parts.write("rows", filled(fine, self.columns))
