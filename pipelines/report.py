"""`report.html`: one page on a run, self-contained: no script, no font, no picture from anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.pipelines import report_graph
from graftline.pipelines.report_cost import beside_plan, cost
from graftline.pipelines.report_evaluation import evaluation, headline
from graftline.pipelines.report_models import curves, json_lines, merge, transcript
from graftline.pipelines.report_routes import router, tradeoff
from graftline.pipelines.report_rows import calls_of, funnel, generated, histograms
from graftline.pipelines.report_sweeps import sweeps
from graftline.pipelines.words import duration, error_text, number, shown, spaced
from graftline.stages.errors import StoreFailed

if TYPE_CHECKING:
    from graftline.pipelines.running import Run
    from graftline.stages.artefact import Artefact

MOST_ARROWS = 2
"""A model that more stages read is drawn without arrows."""
MOST_CURVES = 6
"""Stages whose training curves are open at once."""
SECTIONS = (
    ("pipeline", "The pipeline", ""), ("evaluation", "Evaluation", "evaluations"), ("merging", "Merging", "merges"),
    ("routing", "Routing", "routing"), ("rows", "Rows", "funnel"), ("scores", "Scores", "histograms"),
    ("sweep", "Sweep", "sweeps"), ("training", "Training", "curves"), ("generated", "Generated rows", "generated"),
    ("service", "Service", "transcripts"), ("cost", "Cost", ""), ("environment", "Environment", ""),
)  # fmt: skip
"""Id, title and content of each section, in their order on the page; one without content is left out."""
Open = Callable[[Mapping[str, Any]], "Artefact | None"]
"""The artefact of a line of `run.json`'s table of stages; None where there is none (yet, or any more)."""


def write(done: Run, figures: Mapping[str, Any] | None = None) -> str:
    """Writes a run's `report.html` into its folder; answers with its path.

    Args:
        done: a run, finished or not.
        figures: what the pipeline file's `figures(run)` gave.
    """

    def open_artefact(line: Mapping[str, Any]) -> Artefact | None:
        try:
            return done.opened(line)
        except StoreFailed:
            return None

    log = f"runs/{done.id}/metrics.jsonl"
    metrics = json_lines(done.store.read_bytes(log).decode()) if done.store.exists(log) else []
    table = done.store.read_json(f"runs/{done.id}/pipeline.json")
    written = frozenset(table["stages"]) if table else None
    page = f"runs/{done.id}/report.html"
    done.store.write_bytes(page, render(done.record, open_artefact, metrics, figures, written).encode())
    return done.store.path(page)


def render(
    record: Mapping[str, Any],
    open_artefact: Open,
    metrics: Iterable[Mapping[str, Any]] = (),
    figures: Mapping[str, Any] | None = None,
    written: frozenset[str] | None = None,
) -> str:
    """The page, as HTML.

    Args:
        record: `run.json`.
        open_artefact: finds a stage's artefact.
        metrics: the lines of `metrics.jsonl`.
        figures: what the pipeline file's `figures(run)` gave.
        written: keys of the stages that the pipeline names; the others are hidden ones (None: there are none).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"duration": duration, "number": number, "spaced": spaced, "shown": shown}
    environment.filters |= {"told": error_text, "beside_plan": beside_plan}
    page = gather(record, open_artefact, metrics, figures or {}, written)
    return environment.get_template("report.html.j2").render(page)


def gather(
    record: Mapping[str, Any],
    open_artefact: Open,
    metrics: Iterable[Mapping[str, Any]],
    figures: Mapping[str, Any],
    written: frozenset[str] | None = None,
) -> dict[str, Any]:
    """What the page shows, section by section; a section without content is empty."""
    stages = [stage for stage in record["stages"] if not stage.get("part")]

    def shows(stage: Mapping[str, Any]) -> bool:
        return written is None or stage["key"] in written

    opened = {stage["key"]: open_artefact(stage) for stage in stages if stage["status"] in ("cached", "ran")}
    made = [(stage, artefact) for stage in stages if (artefact := opened.get(stage["key"])) is not None]
    reports = [(stage, artefact) for stage, artefact in made if stage["kind"] == "report"]
    evaluations = [each for stage, artefact in reports if (each := evaluation(stage, artefact))["rows"]]
    routers = [each for stage, artefact in reports if (each := router(stage, artefact))["targets"]]
    tradeoffs = [each for stage, artefact in reports if (each := tradeoff(stage, artefact))]
    names = {stage["digest"]: stage["name"] for stage in reversed(stages) if stage.get("digest")}
    tuned = [(stage, artefact) for stage, artefact in made if stage["kind"] in ("model", "adapter")]
    transcripts = [transcript(stage, artefact) for stage, artefact in made if stage["kind"] == "service"]
    transcripts = [each for each in transcripts if each["exchanges"]]
    page = {
        "record": record,
        "stages": stages,
        "counts": {
            status: sum(stage["status"] == status for stage in stages)
            for status in ("ran", "cached", "failed", "pending", "running")
        },
        "graph": _graph([stage for stage in record["stages"] if shows(stage)]),
        "funnel": funnel([stage for stage in stages if shows(stage) or _dropped(stage)]),
        "curves": curves(record["stages"], made, metrics),
        "evaluations": evaluations,
        "routing": [*routers, *tradeoffs],
        "routers": routers,
        "tradeoffs": tradeoffs,
        "merges": [found for stage, artefact in tuned if (found := merge(stage, artefact, names))],
        "sweeps": sweeps(stages, opened),
        "histograms": histograms([(stage, artefact) for stage, artefact in made if shows(stage)]),
        "generated": [group for stage, artefact in made if (group := generated(stage, artefact))["rows"]],
        "transcripts": transcripts,
        "cost": cost(stages),
        "environment": _environment(record, [artefact for _, artefact in made]),
        "tiles": _tiles(record, stages, evaluations, transcripts),
        "figures": {name: shown(value) for name, value in figures.items() if not isinstance(value, (Mapping, list))},
        "most_curves": MOST_CURVES,
    }
    return {**page, "sections": [(id, title) for id, title, content in SECTIONS if not content or page[content]]}


def _dropped(stage: Mapping[str, Any]) -> bool:
    rows = stage.get("rows") or {}
    return bool(rows.get("filtered") or rows.get("failed"))


# --- sections -------------------------------------------------------------------------------------------------


def _tiles(
    record: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    transcripts: Sequence[Mapping[str, Any]],
) -> list[dict[str, str]]:
    tiles: list[dict[str, str]] = []
    for compared in evaluations:
        tiles += headline(compared)
    answered = [exchange["status"] == 200 for asked in transcripts for exchange in asked["exchanges"]]
    if answered:
        tiles.append({"label": "service", "value": f"{sum(answered)} of {len(answered)}", "note": "requests answered"})
    created = sum(stage["rows"]["created"] for stage in stages if stage.get("rows") and calls_of(stage)["requests"])
    if created:
        tiles.append({"label": "rows generated", "value": number(created), "note": "before filtering"})
    read = ("tokens_in", "tokens_out", "tokens_scored")
    tokens = sum(calls_of(stage)[name] for stage in stages for name in read)
    if tokens:
        requests = sum(calls_of(stage)["requests"] for stage in stages)
        note = f"in {number(requests)} model calls"
        tiles.append({"label": "tokens", "value": number(tokens), "note": note})
    fetched = f", and {duration(record['fetch_seconds'])} of downloads" if record.get("fetch_seconds") else ""
    ran = sum(stage["status"] == "ran" for stage in stages)
    cached = sum(stage["status"] == "cached" for stage in stages)
    note = f"{ran} stages ran, {cached} cached{fetched}"
    tiles.append({"label": "time", "value": duration(record.get("seconds")), "note": note})
    return tiles


def _graph(stages: Sequence[Mapping[str, Any]]) -> Any:
    """Views are no boxes of their own: their part's name stands on the arrow. Nor has a model that many stages read
    arrows: a dot says that they do."""
    views = {stage["key"]: stage for stage in stages if stage.get("part")}
    by_key = {stage["key"]: stage for stage in stages}
    readers = {key: sum(key in stage["inputs"] for stage in stages) for key in by_key}
    everywhere = {
        key: stage
        for key, stage in by_key.items()
        if stage["kind"] == "model" and not stage["inputs"] and readers[key] > MOST_ARROWS
    }
    nodes = []
    parts: dict[tuple[str, str], list[str]] = {}
    for stage in stages:
        if stage["key"] in views:
            continue
        models = [everywhere[key] for key in stage["inputs"] if key in everywhere]
        hint = "\n".join(
            [stage["class"], f"fingerprint {stage['fingerprint'][:16]}", *(f"reads {each['name']}" for each in models),
             *([stage["why"]] if stage.get("why") else [])]
        )  # fmt: skip
        classes = f"{stage['kind']} {stage['status']}"
        dots = ("model",) * (len(models) + (stage["key"] in everywhere))
        nodes.append(report_graph.Node(stage["key"], stage["name"], _note(stage), classes, hint, dots, stage["class"]))
        for key in stage["inputs"]:
            part, tail = "", key
            while tail in views:
                part, tail = views[tail]["part"], views[tail]["inputs"][0]
            if tail in by_key and tail not in everywhere:
                known = parts.setdefault((tail, stage["key"]), [])
                known += [part] if part and part not in known else []
    edges = []
    for (tail, head), names in parts.items():
        kind = by_key[tail]["kind"]
        # A model feeds nearly every stage: its arrows must not bend the line of the rows.
        edges.append(report_graph.Edge(tail, head, ", ".join(names), f"from-{kind}", 0.1 if kind == "model" else 1.0))
    return report_graph.graph(nodes, edges)


def _note(stage: Mapping[str, Any]) -> str:
    if stage["status"] in ("failed", "stopped", "pending", "running"):
        return str(stage["status"])
    parts = []
    if stage["kind"] == "rows" and stage.get("rows"):
        parts.append(f"{number(stage['rows']['kept'])} rows")
    seconds = stage.get("seconds") or 0.0
    short = duration(seconds) if seconds < 60 else f"{seconds / 60:.1f} min"
    parts.append("cached" if stage["status"] == "cached" else short)
    return " · ".join(parts)


def _environment(record: Mapping[str, Any], artefacts: Sequence[Artefact]) -> dict[str, Any]:
    versions: dict[str, set[str]] = {}
    for artefact in artefacts:
        for name, version in (artefact.manifest.get("versions") or {}).items():
            versions.setdefault(name, set()).add(str(version))
    used = {name: ", ".join(sorted(found)) for name, found in sorted(versions.items())}
    named = {name: record.get(name) for name in ("file", "store", "started", "finished")}
    parameters = {f"parameter {name}": value for name, value in (record.get("parameters") or {}).items()}
    return {name: value for name, value in {**named, **parameters, **used}.items() if value not in (None, "")}
