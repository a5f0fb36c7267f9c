"""How many rows a plan expects, and what models will be asked for, within a factor of two where it says anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from graftline.pipelines.graph import Graph, Known
from graftline.stages.artefact import Artefact
from graftline.stages.expected import SAMPLE, Expected, Given, Row, Volume
from graftline.stages.stage import Stage, View

TEXTS = ("string", "messages")
NOT_TEXTS = ("id", "group", "source")


def estimates(
    graph: Graph, known: Known, file: Callable[[str], str], found: Mapping[str, Expected] | None = None
) -> dict[str, Expected]:
    """Key → what is expected of every stage; rows of an artefact are counted.

    Args:
        file: makes a path that a stage names absolute.
        found: what is expected of some stages already.
    """
    expected = dict(found or {})
    volumes = {key: each.volume for key, each in expected.items()}
    given = Given(volumes, file, lambda model: at_hand(graph, known, model, file))
    there = {key for key, stage in graph.stages.items() if known.get(graph, stage) is not None}
    read = {each.key for key in graph.stages if key not in there for each in graph.reads[key]}
    for stage in graph.stages.values():
        if stage.key in expected:
            continue
        artefact = known.get(graph, stage)
        if artefact is not None:
            sample = sampled(artefact, stage) if stage.key in read and stage.kind == "rows" else ()
            expected[stage.key] = Expected(Volume(artefact.count, sample) if stage.kind == "rows" else None)
        elif isinstance(stage, View):
            parts = expected[stage.of.key].rows
            expected[stage.key] = Expected(parts.get(stage.part, Volume()) if isinstance(parts, Mapping) else Volume())
        else:
            expected[stage.key] = stage.expected(given)
        volumes[stage.key] = expected[stage.key].volume
    return expected


def sampled(artefact: Artefact, stage: Stage) -> tuple[Row, ...]:
    """Some rows of an artefact, with the columns that are texts."""
    names = [name for name, type_ in stage.columns.items() if type_ in TEXTS and name not in NOT_TEXTS]
    return tuple(artefact.dataset().head(SAMPLE, columns=names).to_pylist())


def at_hand(graph: Graph, known: Known, model: Stage, file: Callable[[str], str]) -> Path | None:
    """The files of a model, where they are on this disk: a copy in a store elsewhere would have to be fetched."""
    made = known.get(graph, model) if model.key in graph.stages else None
    if made is not None and known.artefacts.store.local and made.files("model/tokenizer.json"):
        return made.directory("model")
    look: Callable[[Callable[[str], str]], Path | None] | None = getattr(model, "at_hand", None)
    return look(file) if look is not None else None
