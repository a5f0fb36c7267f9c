"""The report's section on sweeps: every trial with its values and its metric, the best one marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

LEAST_WIDTH = 4.0
"""Percent of the bar of the smallest metric, so that it is seen."""


def sweeps(stages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each sweep its name, what it picked by, its fields, and its trials in the order they were planned, each with
    a bar between the smallest and the largest metric."""
    found = []
    for stage in stages:
        metrics = stage.get("metrics") or {}
        trials = metrics.get("trials")
        if not isinstance(trials, list) or not trials or "picked_by" not in metrics:
            continue
        fields = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
        numbers = [trial["metric"] for trial in trials if _is_number(trial["metric"])]
        low, high = (min(numbers), max(numbers)) if numbers else (0.0, 0.0)
        found.append(
            {
                "name": stage["name"],
                "picked_by": metrics["picked_by"],
                "fields": fields,
                "trials": [
                    {
                        **{name: trial.get(name) for name in ("status", "metric", "seconds", "why")},
                        "values": [trial["values"].get(name) for name in fields],
                        "is_best": trial["values"] == metrics.get("best"),
                        "width": _width(trial["metric"], low, high),
                    }
                    for trial in trials
                ],
            }
        )
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _width(value: Any, low: float, high: float) -> float:
    """Percent of the bar's room."""
    if not _is_number(value):
        return 0.0
    return 100.0 if high == low else LEAST_WIDTH + (100 - LEAST_WIDTH) * (value - low) / (high - low)
