"""The report's sections on models: their training, how they compare, what a service answered."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftline.pipelines import report_charts
from graftline.pipelines.words import spaced
from graftline.stages.errors import StoreFailed

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact

MOST_SAMPLES = 6


def curves(
    stages: Sequence[Mapping[str, Any]],
    made: Sequence[tuple[Mapping[str, Any], Artefact]],
    metrics: Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A stage's curves: those of this run, else (it was cached) those its artefact kept."""
    logs: dict[str, list[Mapping[str, Any]]] = {}
    for line in metrics:
        logs.setdefault(str(line.get("key")), []).append(line)
    for stage, artefact in made:
        if stage["key"] not in logs and "log.jsonl" in artefact.manifest["files"]:
            logs[stage["key"]] = [*json_lines(text_of(artefact, "log.jsonl"))]
    found = []
    for stage in stages:
        series: dict[str, dict[float, float]] = {}
        for line in logs.get(stage["key"], []):
            for name, value in line.items():
                numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
                if name not in ("step", "time") and numeric and isinstance(line.get("step"), (int, float)):
                    series.setdefault(name, {})[line["step"]] = value  # a step done again after a kill counts once
        groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for name, points in sorted(series.items(), key=_losses_first):
            groups.setdefault("loss" if "loss" in name else name, {})[name] = sorted(points.items())
        charts = [
            {"title": spaced(title), "names": [spaced(name) for name in group], "svg": report_charts.lines(group)}
            for title, group in sorted(groups.items(), key=_losses_first)
        ]
        if charts := [chart for chart in charts if chart["svg"]]:
            found.append({"name": stage["name"], "charts": charts})
    return found


def _losses_first(item: tuple[str, Any]) -> tuple[bool, str]:
    return (item[0] != "loss", item[0])


def evaluation(stage: Mapping[str, Any], artefact: Artefact) -> dict[str, Any]:
    report = json_of(artefact, "report.json")
    columns, rows = list(report.get("columns", ())), []
    values = [
        bound
        for metric in report.get("metrics", {}).values()
        for cell in metric.values()
        for bound in (cell.get("value"), cell.get("ci_low"), cell.get("ci_high"))
        if bound is not None
    ]
    shares = all(0 <= value <= 1 for value in values)
    for metric, by_column in report.get("metrics", {}).items():
        own = [
            bound
            for cell in by_column.values()
            for bound in (cell.get("value"), cell.get("ci_low"), cell.get("ci_high"))
            if bound is not None and math.isfinite(bound)
        ]
        least, most = (0.0, 1.0) if shares or not own else (min(0.0, *own), max(own))
        cells = []
        for index, column in enumerate(columns):
            cell = by_column.get(column, {})
            value, low, high = cell.get("value"), cell.get("ci_low"), cell.get("ci_high")
            svg = "" if value is None else report_charts.interval(
                value, value if low is None else low, value if high is None else high, most, least, index
            )  # fmt: skip
            extra = {name: each for name, each in cell.items() if name not in ("value", "n", "ci_low", "ci_high")}
            gain = report.get("gains", {}).get(metric, {}).get(column)
            cells.append(
                {"column": column, "value": value, "n": cell.get("n"), "low": low, "high": high, "svg": svg,
                 "gain": gain, "extra": {name: each for name, each in extra.items() if each}}
            )  # fmt: skip
        rows.append({"metric": metric, "cells": cells})
    return {
        "name": stage["name"],
        "columns": columns,
        "rows": rows,
        "intervals": report.get("intervals", ""),
        "decoding": report.get("decoding", {}),
        "confusion": _confusion(report.get("confusion", {}), columns),
        "samples": report.get("samples", [])[:MOST_SAMPLES],
    }


def _confusion(tables: Mapping[str, Mapping[str, Mapping[str, int]]], columns: Sequence[str]) -> dict[str, Any]:
    """The last column's table of references and predictions; what is no label comes last."""
    column = columns[-1] if columns else ""
    table = tables.get(column, {})
    predicted = {name for counts in table.values() for name in counts}
    labels = sorted(table) + sorted(predicted - set(table), key=lambda name: (name.startswith("("), name))
    lines = [
        {"reference": reference, "cells": [{"label": label, "count": counts.get(label, 0),
                                            "share": counts.get(label, 0) / (sum(counts.values()) or 1)}
                                           for label in labels]}
        for reference, counts in sorted(table.items())
    ]  # fmt: skip
    return {"column": column, "labels": labels, "lines": lines}


def transcript(stage: Mapping[str, Any], artefact: Artefact) -> dict[str, Any]:
    exchanges = []
    for exchange in json_of(artefact, "transcript.json") or []:
        request = exchange.get("request") or {}
        body = request.get("json") or request.get("body") or request
        rest = {name: value for name, value in body.items() if name != "messages"}
        exchanges.append(
            {"messages": body.get("messages") or [], "rest": rest, "status": exchange.get("status"),
             "text": exchange.get("text") or "", "seconds": exchange.get("seconds")}
        )  # fmt: skip
    return {"name": stage["name"], "exchanges": exchanges}


def json_lines(text: str) -> list[dict[str, Any]]:
    """The JSON lines of a text; a line cut short by a kill is left out."""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def json_of(artefact: Artefact, name: str) -> Any:
    return json.loads(text_of(artefact, name)) if name in artefact.manifest["files"] else {}


def text_of(artefact: Artefact, name: str) -> str:
    try:
        with artefact.filesystem.open_input_stream(f"{artefact.path}/{name}") as stream:
            return bytes(stream.read()).decode()
    except OSError as error:
        raise StoreFailed(f"cannot read it: {error}", where=f"{artefact.path}/{name}") from error
