"""The report's sections on rows: what became of them, their scores, some that a model made."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftline.pipelines import report_charts
from graftline.stages.expected import AMOUNTS
from graftline.stages.rows import FIXED, PREFERENCE

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact

MOST_SAMPLES = 6
MOST_VALUES = 200_000
"""Rows of a score column that a histogram reads at most."""


def funnel(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    bars = []
    for stage in stages:
        rows = stage.get("rows")
        if stage["kind"] != "rows" or not rows:
            continue
        parts = [("kept", "", rows["kept"])]
        parts += [("filtered", reason, count) for reason, count in _largest(rows["filtered"])]
        parts += [("failed", reason, count) for reason, count in _largest(rows["failed"])]
        total = sum(count for _, _, count in parts)
        bars.append({"name": stage["name"], "total": total, "rows": rows, "parts": parts})
    most = max((bar["total"] for bar in bars), default=0) or 1
    for bar in bars:
        bar["parts"] = [
            {"kind": kind, "reason": reason, "count": count, "width": 100 * count / most}
            for kind, reason, count in bar["parts"]
        ]
    return bars


def _largest(reasons: Mapping[str, int], most: int = 5) -> list[tuple[str, int]]:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[most:]
    return ordered[:most] + ([(f"{len(rest)} other reasons", sum(count for _, count in rest))] if rest else [])


def histograms(made: Sequence[tuple[Mapping[str, Any], Artefact]]) -> list[dict[str, Any]]:
    """Each score column where it first appears, with the rows of its smallest descendant in front."""
    import pyarrow as pa

    rows_of = {stage["key"]: (stage, artefact) for stage, artefact in made if stage["kind"] == "rows"}
    origins: dict[str, str] = {}
    smallest: dict[str, str] = {}
    for key, (_, artefact) in rows_of.items():
        for column in artefact.dataset().schema:
            numeric = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
            if not numeric or column.name in FIXED or column.name in PREFERENCE:
                continue
            origins.setdefault(column.name, key)
            best = smallest.setdefault(column.name, key)
            if artefact.count < rows_of[best][1].count:
                smallest[column.name] = key
    found = []
    for column, key in origins.items():
        stage, artefact = rows_of[key]
        everything = _values(artefact, column)
        chosen_stage, chosen = rows_of[smallest[column]]
        front = _values(chosen, column) if smallest[column] != key else []
        if svg := report_charts.histogram(everything, front):
            found.append(
                {"column": column, "stage": stage["name"], "svg": svg, "count": len(everything),
                 "missing": artefact.count - len(everything) if artefact.count <= MOST_VALUES else 0,
                 "median": _median(everything), "chosen_median": _median(front),
                 "chosen": chosen_stage["name"] if front else "", "chosen_count": len(front)}
            )  # fmt: skip
    return found


def _values(artefact: Artefact, column: str) -> list[float]:
    values = artefact.dataset().head(MOST_VALUES, columns=[column])[column].to_pylist()
    return [float(value) for value in values if value is not None]


def _median(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None


def generated(stage: Mapping[str, Any], artefact: Artefact) -> dict[str, Any]:
    """Some rows a model made, those that were dropped with their reasons."""
    samples: list[dict[str, Any]] = []
    if stage["kind"] == "rows" and calls_of(stage)["requests"] and (stage.get("rows") or {}).get("created"):
        for outcome, most in (("rows", MOST_SAMPLES - 2), ("filtered", 1), ("failed", 1)):
            if not artefact.files(f"{outcome}/"):
                continue
            for row in artefact.dataset(outcome).head(64).to_pylist():
                turns = row.get("messages") or row.get("prompt") or []
                if most and turns:
                    reason = row.get("reason") or row.get("error") or ""
                    kind = "kept" if outcome == "rows" else outcome
                    samples.append({"outcome": kind, "reason": reason, "messages": turns, "id": row["id"]})
                    most -= 1
    return {"name": stage["name"], "rows": samples}


def calls_of(stage: Mapping[str, Any]) -> dict[str, Any]:
    calls = stage.get("calls") or {}
    return {name: calls.get(name) or 0 for name in AMOUNTS}
