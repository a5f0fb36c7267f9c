"""The report's sections on models: their training, merging, what a service answered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftline.pipelines import report_charts
from graftline.pipelines.words import shown, spaced
from graftline.stages.errors import StoreFailed

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact

WIDE, NARROW = 520, 340
"""Pixels of the first chart of a stage, which is seen at once, and of the others."""
FIGURES_OF_MERGES = ("loss", "kl", "logits_off")
"""Measured of each way to fold an adapter into its base: `kl_exact`, `kl_original`."""


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
        if stage.get("asked_by"):  # a trial: the sweep's section has it
            continue
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
            {
                "title": spaced(title),
                "names": [spaced(name) for name in group],
                "svg": report_charts.lines(group, width=NARROW if place else WIDE),
            }
            for place, (title, group) in enumerate(sorted(groups.items(), key=_losses_first))
        ]
        if charts := [chart for chart in charts if chart["svg"]]:
            best = (stage.get("metrics") or {}).get("best") if "trials" in (stage.get("metrics") or {}) else None
            which = ", ".join(f"{name} = {shown(value)}" for name, value in (best or {}).items())
            note = f"{stage['name']}{f', its best trial ({which})' if which else ''}"
            found.append({"name": note, "main": charts[:1], "more": charts[1:]})
    return found


def _losses_first(item: tuple[str, Any]) -> tuple[bool, str]:
    return (item[0] != "loss", item[0])


def merge(stage: Mapping[str, Any], artefact: Artefact, names: Mapping[str, str]) -> dict[str, Any]:
    """What was merged, by which formula, and how far each way of folding is from the unmerged model. Empty for what is
    no merge.

    Args:
        names: digest → name of a stage.
    """
    about = json_of(artefact, "merge.json") or json_of(artefact, "adapter/graftline.json")
    if not about.get("formula"):
        return {}
    ways: dict[str, dict[str, float]] = {}
    rest: dict[str, float] = {}
    for name, value in artefact.metrics.items():
        figure = next((each for each in FIGURES_OF_MERGES if name.startswith(f"{each}_")), None)
        if not isinstance(value, (int, float)):
            continue
        if figure:
            ways.setdefault(name.removeprefix(f"{figure}_"), {})[figure] = value
        else:
            rest[name] = value
    parents = [
        {"name": names.get(parent.get("digest", ""), role), "role": role, "weight": parent.get("weight")}
        for role, parent in about.get("parents", {}).items()
    ]
    return {"name": stage["name"], "formula": about["formula"], "parents": parents, "ways": ways, "rest": rest}


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
