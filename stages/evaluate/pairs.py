"""Two columns of a report on the same rows: who got right what the other did not, and whether that may be chance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Verdicts = Sequence[bool | None]
"""Whether each row's answer is right; None: nobody can tell."""


def compared(verdicts: Mapping[str, Verdicts], cluster: Sequence[int]) -> list[dict[str, Any]]:
    """Every two columns, in their order: `columns`, `n` rows with a verdict on both, `right` (how many each got), and
    `alone` (how many each got right that the other did not), with `p` of McNemar's exact test. It takes each row for a
    draw of its own, so `p` is None where rows come in groups.

    Args:
        verdicts: column → its verdicts.
        cluster: a number for each row; rows that have the same count as one draw.
    """
    independent = len(set(cluster)) == len(cluster)
    found = []
    for one, other in itertools.combinations(verdicts, 2):
        both = [
            (first, second)
            for first, second in zip(verdicts[one], verdicts[other], strict=True)
            if first is not None and second is not None
        ]
        alone = [both.count((True, False)), both.count((False, True))]
        found.append(
            {
                "columns": [one, other],
                "n": len(both),
                "right": [sum(first for first, _ in both), sum(second for _, second in both)],
                "alone": alone,
                "p": mcnemar(*alone) if independent and both else None,
            }
        )
    return found


def mcnemar(one: int, other: int) -> float:
    """McNemar's exact test: the probability that fair coins split so many rows at least as unevenly (two-sided).

    Args:
        one, other: rows that only the one, and only the other, got right.
    """
    if not one + other:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(one, other), one + other).pvalue)


def beyond(trained: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Columns whose training rows hold all of another's and more: `column`, `of`, `rows` (how many more) and `made`
    (how many of those were made from other rows).

    Args:
        trained: column → ids and parents of the rows it was trained on.
    """
    rows = {
        column: dict(zip(table["id"].to_pylist(), table["parents"].to_pylist(), strict=True))
        for column, table in trained.items()
    }
    found = []
    for one, other in itertools.permutations(rows, 2):
        if rows[other] and rows[other].keys() < rows[one].keys():
            more = rows[one].keys() - rows[other].keys()
            found.append(
                {"column": one, "of": other, "rows": len(more), "made": sum(bool(rows[one][row]) for row in more)}
            )
    return found
