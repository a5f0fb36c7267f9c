"""How many rows, calls and tokens a plan expects, within a factor of two where it says anything.

A stage may say it itself, by methods that planning looks for: `rows_expected(rows) -> int` (`rows`: field → rows of
that input, summed over a tuple; a stage with views: part → rows) and `calls_expected(rows) -> (calls, tokens in,
tokens out)`. What does not is estimated from its shape and the usual fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.pipelines.graph import Graph, Known
from graftline.stages.shapes import Mapper, Rounds, Scorer, Selector, Source
from graftline.stages.stage import Stage, View

LIMITS = ("k", "budget", "count")
"""Fields that usually say how many rows a stage keeps or makes."""


@dataclass(frozen=True)
class Estimate:
    """What is expected of a stage; None: unknown."""

    rows: int | None = None
    calls: int | None = 0
    tokens_in: int | None = 0
    tokens_out: int | None = 0


def estimates(graph: Graph, known: Known, file: Callable[[str], str]) -> dict[str, Estimate]:
    """Key → estimate of every stage."""
    found: dict[str, Estimate] = {}
    parts: dict[str, Mapping[str, int]] = {}
    for stage in graph.stages.values():
        artefact = known.get(graph, stage)
        if artefact is not None:
            found[stage.key] = Estimate(artefact.count if stage.kind == "rows" else None)
            continue
        given = {name: rows for name, value in stage.__dict__.items() if (rows := _sum(value, found)) is not None}
        rows = _rows(stage, given, parts, file) if stage.kind == "rows" else None
        found[stage.key] = Estimate(rows, *_calls(stage, given, rows))
        if stage.views and "rows" in given:
            parts[stage.key] = _parts(stage, given)
    return found


def _sum(value: Any, found: Mapping[str, Estimate]) -> int | None:
    """The rows of an input field."""
    if isinstance(value, Stage):
        return found[value.key].rows if value.kind == "rows" and value.key in found else None
    if isinstance(value, tuple):
        rows = [_sum(item, found) for item in value]
        return sum(filter(None, rows)) if rows and None not in rows else None
    return None


def _rows(
    stage: Stage, given: Mapping[str, int], parts: Mapping[str, Mapping[str, int]], file: Callable[[str], str]
) -> int | None:
    if isinstance(stage, View):
        return parts.get(stage.of.key, {}).get(stage.part)
    if hasattr(stage, "rows_expected") and not stage.views:
        return int(stage.rows_expected(given))
    if isinstance(stage, (Mapper, Scorer)):
        return given.get("rows")
    limit = next((getattr(stage, name) for name in LIMITS if isinstance(getattr(stage, name, None), int)), None)
    if isinstance(stage, Rounds):
        return limit
    if isinstance(stage, Selector):
        rows = given.get("rows")
        return rows if limit is None or rows is None else min(limit, rows)
    path = getattr(stage, "path", None)
    if isinstance(stage, Source) and isinstance(path, str):
        return _lines(Path(file(path)))
    return sum(given.values()) if given else None


def _parts(stage: Stage, given: Mapping[str, int]) -> Mapping[str, int]:
    """Part → rows of a stage with views: as it says, else by its `shares`, else evenly."""
    if hasattr(stage, "rows_expected"):
        expected: Mapping[str, int] = stage.rows_expected(given)
        return expected
    shares = getattr(stage, "shares", None)
    if not isinstance(shares, tuple) or len(shares) != len(stage.views):
        shares = (1 / len(stage.views),) * len(stage.views)
    return {part: round(given["rows"] * share) for part, share in zip(stage.views, shares, strict=True)}


def _calls(stage: Stage, given: Mapping[str, int], rows: int | None) -> tuple[int | None, int | None, int | None]:
    if hasattr(stage, "calls_expected"):
        calls, tokens_in, tokens_out = stage.calls_expected(given)
        return calls, tokens_in, tokens_out
    if isinstance(stage, Rounds):
        calls, tokens = stage.most_calls()
        return (calls, None, calls * tokens) if calls else (None, None, None)
    if isinstance(stage, (Mapper, Scorer)) and stage.calls_model:
        return rows, None, None
    return 0, 0, 0


def _lines(path: Path) -> int | None:
    """Rows of a file by its ending; None where that is not known without reading it whole."""
    if not path.is_file():
        return None
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    if path.suffix in (".jsonl", ".csv", ".tsv"):
        with open(path, "rb") as stream:
            count = sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
        return max(0, count - (path.suffix != ".jsonl"))
    return None
