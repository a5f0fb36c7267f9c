"""How many rows, calls and tokens a plan expects, within a factor of two where a stage says anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graftline.pipelines.graph import Graph, Known
from graftline.stages.stage import Stage, View


@dataclass(frozen=True)
class Estimate:
    """What is expected of a stage; None: unknown."""

    rows: int | None = None
    calls: int | None = 0
    tokens_in: int | None = 0
    tokens_out: int | None = 0


def estimates(graph: Graph, known: Known, file: Callable[[str], str]) -> dict[str, Estimate]:
    """Key → estimate of every stage.

    Args:
        file: makes a path that a stage names absolute.
    """
    found: dict[str, Estimate] = {}
    parts: dict[str, Mapping[str, int]] = {}
    for stage in graph.stages.values():
        artefact = known.get(graph, stage)
        if artefact is not None:
            found[stage.key] = Estimate(artefact.count if stage.kind == "rows" else None)
            continue
        given = {name: of for name, value in stage.__dict__.items() if (of := _sum(value, found)) is not None}
        rows: int | None = None
        if isinstance(stage, View):
            rows = parts.get(stage.of.key, {}).get(stage.part)
        elif stage.kind == "rows":
            expected = stage.rows_expected(given, file)
            if isinstance(expected, Mapping):
                parts[stage.key] = expected
                rows = sum(expected.values())
            else:
                rows = expected
        found[stage.key] = Estimate(rows, *stage.calls_expected(given))
    return found


def _sum(value: Any, found: Mapping[str, Estimate]) -> int | None:
    """The rows of an input field."""
    if isinstance(value, Stage):
        return found[value.key].rows if value.kind == "rows" and value.key in found else None
    if isinstance(value, tuple):
        rows = [_sum(item, found) for item in value]
        return sum(filter(None, rows)) if rows and None not in rows else None
    return None
