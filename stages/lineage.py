"""Which rows come from which: training rows that are, or descend from, held-out rows are refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from graftline.stages.errors import HeldOutLeak
from graftline.stages.rows import split_groups

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.artefact import Artefact

COLUMNS = ("id", "parents", "group")
"""What is needed to know: a trained artefact keeps these of its rows in `trained_on.parquet`."""
TRAINED_ON = "trained_on.parquet"
SHOWN = 5


def trained_on(made: Artefact) -> pa.Table | None:
    """Ids, parents and groups of the rows an artefact was trained on (None: it says nothing of training)."""
    import pyarrow.parquet as pq

    found = made.files(TRAINED_ON)
    return pq.read_table(found[0], filesystem=made.filesystem).select(list(COLUMNS)) if found else None


def together(tables: Iterable[pa.Table | None]) -> pa.Table | None:
    """The rows of all, each id once, sorted by id: what is made from several parts was trained on all their rows."""
    import pyarrow as pa

    known = [each.select(list(COLUMNS)) for each in tables if each is not None]
    if not known:
        return None
    rows = {row["id"]: row for each in known for row in each.to_pylist()}
    return pa.Table.from_pylist([rows[id] for id in sorted(rows)], schema=known[0].schema)


def refuse_leak(train: pa.Table, held_out: pa.Table, *, where: str) -> None:
    """Refuse training rows that are held-out rows, have one as a parent, or share a group with one.

    A made row inherits its parents' groups and joins them, so the group finds descendants of any generation, and also
    the other way round: held-out rows that were made from training rows.

    Args:
        train: rows trained on, with the columns `id`, `parents` and `group`.
        held_out: rows to evaluate on, with the same columns.
        where: the field, for the message.

    Raises:
        HeldOutLeak: with the names of some of the rows.
    """
    held_ids = set(held_out["id"].to_pylist())
    held_parents = {parent for parents in held_out["parents"].to_pylist() for parent in parents or ()}
    held_groups = {part for group in held_out["group"].to_pylist() for part in split_groups(group or "") if part}
    found = []
    for row in train.select(list(COLUMNS)).to_pylist():
        identity, parents = row["id"], set(row["parents"] or ())
        groups = held_groups.intersection(split_groups(row["group"] or ""))
        if identity in held_ids:
            found.append(f"{identity} is a held-out row")
        elif born := sorted(parents & held_ids):
            found.append(f"{identity} was made from the held-out row {born[0]}")
        elif identity in held_parents:
            found.append(f"the held-out rows contain one made from {identity}")
        elif groups:
            found.append(f"{identity} shares the group {min(groups)} with held-out rows")
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise HeldOutLeak(
            f"{len(found)} of {train.num_rows} training rows leak into the held-out rows:"
            f" {'; '.join(found[:SHOWN])}{more}",
            where=where,
            do="split the rows first (select.Split) and make new ones from the training part alone",
        )
