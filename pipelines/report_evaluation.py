"""The report's section on evaluation: each metric with all its columns, what may be said of them, answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftline.pipelines import report_charts
from graftline.pipelines.report_models import json_of
from graftline.pipelines.words import number, spaced
from graftline.stages.evaluate.compare import BASE

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact

MOST_SAMPLES = 6
MOST_PAIRS = 6
"""Pairs of columns that get a sentence each; of more columns one says who is as good as the best."""
CHANCE = 0.05
NOT_EXTRA = ("value", "n", "ci_low", "ci_high")


def evaluation(stage: Mapping[str, Any], artefact: Artefact) -> dict[str, Any]:
    """What a Compare's report says; a router's report is none (`report_routes`)."""
    report = json_of(artefact, "report.json")
    columns = [] if "routes" in report else list(report.get("columns", ()))
    metrics = report.get("metrics", {}) if columns else {}
    shares = all(0 <= bound <= 1 for metric in metrics.values() for bound in _bounds(metric))
    rows = [_metric(report, name, cells, columns, shares) for name, cells in metrics.items()]
    judged = [row for row in rows if row["best"]]
    return {
        "name": stage["name"],
        "columns": columns,
        "rows": rows,
        "intervals": report.get("intervals", ""),
        "decoding": report.get("decoding", {}),
        "confusion": _confusion(report.get("confusion", {}), judged[0]["best"] if judged else "", columns),
        "samples": [_sample(sample, columns) for sample in report.get("samples", [])[:MOST_SAMPLES]],
    }


def _bounds(cells: Mapping[str, Mapping[str, Any]]) -> list[float]:
    found = [cell.get(name) for cell in cells.values() for name in ("value", "ci_low", "ci_high")]
    return [float(bound) for bound in found if bound is not None and math.isfinite(bound)]


def _metric(
    report: Mapping[str, Any], name: str, by_column: Mapping[str, Any], columns: Sequence[str], shares: bool
) -> dict[str, Any]:
    """One metric's lines, a column each, on one scale."""
    own = _bounds(by_column)
    least, most = (0.0, 1.0) if shares or not own else (min(0.0, *own), max(own))
    judged = name in report.get("pairs", {})
    numbers = {column: value for column in columns if (value := by_column.get(column, {}).get("value")) is not None}
    tuned = {column: value for column, value in numbers.items() if column != BASE}
    best = max(tuned, key=lambda column: tuned[column]) if judged and tuned else ""
    cells = []
    for column in columns:
        cell = by_column.get(column, {})
        value, low, high = cell.get("value"), cell.get("ci_low"), cell.get("ci_high")
        kind = "base" if column == BASE else "best" if column == best else ""
        svg = "" if value is None else report_charts.interval(
            value, value if low is None else low, value if high is None else high, most, least, kind
        )  # fmt: skip
        cells.append(
            {
                "column": column, "value": value, "n": cell.get("n"), "low": low, "high": high, "svg": svg,
                "kind": kind, "gain": report.get("gains", {}).get(name, {}).get(column),
                "extra": {key: each for key, each in cell.items() if key not in NOT_EXTRA and each},
            }
        )  # fmt: skip
    counts = {cell["n"] for cell in cells if cell["n"] is not None}
    return {
        "metric": name,
        "cells": cells,
        "best": best,
        "n": counts.pop() if len(counts) == 1 else None,
        "sentences": sentences(report, name),
    }


# --- what may be said -------------------------------------------------------------------------------------------


def sentences(report: Mapping[str, Any], metric: str) -> list[str]:
    """Each two tuned columns in a sentence, those first of which one was trained on more rows; and the base, where it
    beats a tuned one. Of many columns: which are as good as the best, as far as these rows can tell."""
    pairs = report.get("pairs", {}).get(metric, [])
    more = {(each["column"], each["of"]): each for each in report.get("beyond", [])}
    tuned = [pair for pair in pairs if BASE not in pair["columns"] and pair["n"]]
    beaten = [_turned(pair) for pair in pairs if BASE in pair["columns"] and _turned(pair)["columns"][0] == BASE]
    found = [
        f"{BASE} beats {pair['columns'][1]}: {_how(pair)}" for pair in beaten if pair["right"][0] > pair["right"][1]
    ]
    if len(tuned) > MOST_PAIRS:
        return [*found, *_best_of_many(tuned, more)]
    tuned.sort(key=lambda pair: not _related(pair, more))
    return [*found, *(sentence(pair, more) for pair in tuned)]


def sentence(pair: Mapping[str, Any], more: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Two columns compared.

    Args:
        pair: as `stages.evaluate.pairs.compared` has it.
        more: (column, column) → how many rows the first was trained on beyond the second's.
    """
    first, second = pair["columns"]
    if (second, first) in more:  # told of the one with more rows
        pair = {**pair, **{name: pair[name][::-1] for name in ("columns", "right", "alone")}}
    elif (first, second) not in more:
        pair = _turned(pair)
    first, second = pair["columns"]
    beyond = more.get((first, second))
    difference = pair["right"][0] - pair["right"][1]
    if not difference:
        verb, rows = "equals", ""
    else:
        verb = "beats" if difference > 0 else "loses to"
        answers = f"{abs(difference)} of {number(pair['n'])} answers {'more' if difference > 0 else 'fewer'}"
        rows = f", {answers} right"
    trained = ""
    if beyond:
        made = f", {'all' if beyond['made'] == beyond['rows'] else number(beyond['made'])} of them generated"
        trained = f", with {number(beyond['rows'])} more training rows{made if beyond['made'] else ''}"
    return f"{first} {verb} {second}{rows}{trained}: {_how(pair)}"


def _how(pair: Mapping[str, Any]) -> str:
    (first, second), (one, other), (left, right) = pair["columns"], pair["alone"], pair["right"]
    values = f"{left / pair['n']:.3f} against {right / pair['n']:.3f}"
    if not one and not other:
        return f"{values}; both are right on the same rows."
    alone = f"{number(one)} {'row' if one == 1 else 'rows'} only {first} gets right, {number(other)} only {second}"
    if pair["p"] is None:
        return f"{values}; {alone}. Rows come in groups, so they are not tested one by one."
    chance = "hardly chance" if pair["p"] < CHANCE else "may be chance"
    return f"{values}; {alone}: {chance} (McNemar's exact test, p = {_p(pair['p'])})."


def _best_of_many(pairs: Sequence[Mapping[str, Any]], more: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    right: dict[str, float] = {}
    for pair in pairs:
        right |= {column: count / pair["n"] for column, count in zip(pair["columns"], pair["right"], strict=True)}
    best = max(right, key=lambda column: (right[column], column))
    own = [pair for pair in pairs if best in pair["columns"]]
    other = {pair["key"]: pair for pair in ({**pair, "key": _other(pair, best)} for pair in own)}
    tested = sorted((pair for pair in other.values() if pair["p"] is not None), key=lambda pair: pair["p"])
    worse: list[str] = []
    for place, pair in enumerate(tested):  # Holm: the smallest p against all, the next against all but one, …
        if pair["p"] * (len(tested) - place) >= CHANCE:
            break
        worse.append(pair["key"])
    rest = [column for column in sorted(other, key=lambda column: -right[column]) if column not in worse]
    told = [f"{best} has the most answers right ({right[best]:.3f}) of {len(right)} columns."]
    if not tested:
        return [*told, "Rows come in groups, so the columns are not tested against it."]
    if rest:
        told.append(f"These rows cannot tell it from {_listed([f'{name} ({right[name]:.3f})' for name in rest])}.")
    if worse:
        told.append(f"Worse, and hardly by chance: {_listed([f'{name} ({right[name]:.3f})' for name in worse])}.")
    told.append(f"McNemar's exact test against it, Holm's correction for {len(tested)} comparisons, at {CHANCE:g}.")
    told += [sentence(pair, more) for pair in pairs if _related(pair, more)][:MOST_PAIRS]
    return told


def _other(pair: Mapping[str, Any], column: str) -> str:
    first, second = pair["columns"]
    return str(second if first == column else first)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _turned(pair: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pair with the better column first."""
    if pair["right"][0] >= pair["right"][1]:
        return pair
    return {**pair, **{name: pair[name][::-1] for name in ("columns", "right", "alone")}}


def _related(pair: Mapping[str, Any], more: Mapping[tuple[str, str], Any]) -> bool:
    first, second = pair["columns"]
    return (first, second) in more or (second, first) in more


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "below 0.001"


# --- answers ----------------------------------------------------------------------------------------------------


def _confusion(
    tables: Mapping[str, Mapping[str, Mapping[str, int]]], best: str, columns: Sequence[str]
) -> dict[str, Any]:
    """The best column's table of references and predictions (else the last one's); what is no label comes last."""
    column = best if best in tables else columns[-1] if columns else ""
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


def _sample(sample: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """One row's answers; columns that answered alike share a line."""
    answers, correct = sample.get("answers") or {}, sample.get("correct") or {}
    alike: dict[tuple[str, Any], list[str]] = {}
    for column in columns:
        if column in answers:
            alike.setdefault((str(answers[column]), correct.get(column)), []).append(column)
    return {
        "prompt": sample["prompt"],
        "reference": sample["reference"],
        "answers": [
            {"text": text, "correct": verdict, "columns": _few(named)} for (text, verdict), named in alike.items()
        ],
    }


def _few(columns: Sequence[str], most: int = 4) -> str:
    return ", ".join([*columns[:most], *([f"{len(columns) - most} more"] if len(columns) > most else [])])


def headline(compared: Mapping[str, Any], most: int = 3) -> list[dict[str, str]]:
    """The first metrics in a word each: the base and the best tuned column, where answers are right or wrong; else the
    last."""
    tiles = []
    for row in compared["rows"][:most]:
        cells = [cell for cell in row["cells"] if cell["value"] is not None]
        if not cells or (len(cells) > 1 and cells[0]["column"] != BASE):  # columns that are no before and after
            continue
        last = next((cell for cell in cells if cell["column"] == row["best"]), cells[-1])
        first = [] if last is cells[0] else [cells[0]]
        best = f", best of {len(cells) - 1}" if row["best"] and len(cells) > 2 else ""
        tiles.append(
            {
                "label": spaced(row["metric"]),
                "value": " → ".join(f"{cell['value']:.2f}" for cell in (*first, last)),
                "note": f"{' → '.join(cell['column'] for cell in (*first, last))}{best}, n = {last['n']}",
            }
        )
    return tiles
