"""The report's section on sweeps: the metric against each swept field, how every trial came to it, all in a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftline.pipelines import report_charts
from graftline.pipelines.report_charts import Point
from graftline.pipelines.words import shown, spaced
from graftline.stages.sweep.outcome import TABLE

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact

LEAST_WIDTH = 4.0
"""Percent of the bar of the smallest metric, so that it is seen."""
MOST_SHOWN = 12
"""Trials of the table that are open at once."""
LOG_FROM = 16
"""Largest over smallest value from which a field's axis counts by orders of magnitude."""


def sweeps(
    stages: Iterable[Mapping[str, Any]], opened: Mapping[str, Artefact | None] | None = None
) -> list[dict[str, Any]]:
    """Of each sweep its name, what it picked by, its fields, a plot of the metric over each, the trials' curves, and
    the trials, the best first, each with a bar between the smallest and the largest metric.

    Args:
        stages: the run's table of stages.
        opened: a stage's key → its artefact, which has the curves.
    """
    found = []
    for stage in stages:
        metrics = stage.get("metrics") or {}
        trials = metrics.get("trials")
        if not isinstance(trials, list) or not trials or "picked_by" not in metrics:
            continue
        fields = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
        numbers = [trial["metric"] for trial in trials if _is_number(trial["metric"])]
        low, high = (min(numbers), max(numbers)) if numbers else (0.0, 0.0)
        kinds = [_kind(trial, metrics) for trial in trials]
        titles = [_title(trial, metrics["picked_by"]) for trial in trials]
        lines = [
            {
                **{name: trial.get(name) for name in ("status", "metric", "seconds", "why")},
                "values": [trial["values"].get(name) for name in fields],
                "is_best": kind == "best",
                "kind": kind,
                "width": _width(trial["metric"], low, high),
            }
            for trial, kind in zip(trials, kinds, strict=True)
        ]
        best = next((line["metric"] for line in lines if line["is_best"]), None)
        order = sorted(range(len(lines)), key=lambda place: (*_rank(lines[place], best), place))
        found.append(
            {
                "name": stage["name"],
                "picked_by": metrics["picked_by"],
                "best": ", ".join(f"{name} = {shown(value)}" for name, value in (metrics.get("best") or {}).items()),
                "counts": {status: sum(trial["status"] == status for trial in trials)
                           for status in ("full", "stopped", "failed")},
                "fields": fields,
                "plots": [plot for name in fields if (plot := _plot(name, trials, kinds, titles))["svg"]],
                "curves": _curves((opened or {}).get(stage.get("key", "")), kinds, titles),
                "kinds": [kind for kind in ("best", "full", "stopped", "failed") if kind in kinds],
                "trials": [lines[place] for place in order],
                "shown": MOST_SHOWN,
            }
        )  # fmt: skip
    return found


def _kind(trial: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    if trial["values"] == metrics.get("best") and trial["status"] == "full":
        return "best"
    return "failed" if not _is_number(trial["metric"]) else str(trial["status"])


def _title(trial: Mapping[str, Any], metric: str) -> str:
    values = ", ".join(f"{name} = {shown(value)}" for name, value in trial["values"].items())
    number = shown(trial["metric"]) if _is_number(trial["metric"]) else "none"
    state = "" if trial["status"] == "full" else f" ({trial['status']})"
    return f"{values}: {spaced(metric)} {number}{state}"


def _rank(line: Mapping[str, Any], best: float | None) -> tuple[int, float]:
    """The best first, the others by how near they came, then what was stopped and what failed."""
    group = {"best": 0, "full": 1, "stopped": 2}.get(line["kind"], 3)
    return (group, abs(line["metric"] - best) if best is not None and _is_number(line["metric"]) else math.inf)


def _plot(
    field: str, trials: Sequence[Mapping[str, Any]], kinds: Sequence[str], titles: Sequence[str]
) -> dict[str, Any]:
    """The metric over one field's values."""
    values = [trial["values"].get(field) for trial in trials]
    numeric = all(_is_number(value) for value in values)
    names: list[str] = []
    if numeric:
        xs = [float(value) for value in values]
    else:
        names = list(dict.fromkeys(shown(value) for value in values))
        xs = [float(names.index(shown(value))) for value in values]
    log = numeric and min(xs) > 0 and max(xs) >= LOG_FROM * min(xs)
    points = [
        Point(x, float(trial["metric"]) if _is_number(trial["metric"]) else math.nan, kind, title)
        for x, trial, kind, title in zip(xs, trials, kinds, titles, strict=True)
    ]
    return {"field": field, "svg": report_charts.scatter(points, field, names, log)}


def _curves(artefact: Artefact | None, kinds: Sequence[str], titles: Sequence[str]) -> Any:
    """Every trial's metric on its way, of those that say it."""
    if artefact is None or not (files := artefact.files(TABLE)):
        return ""
    import pyarrow.parquet as pq

    table = pq.read_table(files[0], filesystem=artefact.filesystem)
    if "curve" not in table.column_names or table.num_rows != len(kinds):
        return ""
    points = [
        [(x, y) for x, y in zip(steps, values, strict=True) if y is not None and math.isfinite(y)]
        for steps, values in zip(table["curve_steps"].to_pylist(), table["curve"].to_pylist(), strict=True)
    ]
    if max(map(len, points)) < 2:
        return ""
    return report_charts.curves(list(zip(kinds, titles, points, strict=True)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _width(value: Any, low: float, high: float) -> float:
    """Percent of the bar's room."""
    if not _is_number(value):
        return 0.0
    return 100.0 if high == low else LEAST_WIDTH + (100 - LEAST_WIDTH) * (value - low) / (high - low)
