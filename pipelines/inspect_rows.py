"""Rows as people read them on a terminal: turns by role, or the chat template's text with the trained tokens in
colour."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from graftline.pipelines.words import shown, visible
from graftline.stages.errors import RowFault, UnknownStage
from graftline.stages.rows import FIXED, PREFERENCE

if TYPE_CHECKING:
    from graftline.pipelines.running import Run
    from graftline.stages.artefact import Artefact

OUTCOMES = {"kept": "rows", "filtered": "filtered", "failed": "failed"}
"""Outcome → the artefact's folder."""
ROLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
TRAINED, UNTRAINED = "bold black on green", "dim"
REASONS = ("reason", "error")


class Tokenizer(Protocol):
    """What a rendering needs of a tokenizer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens, special ones included."""


@dataclass(frozen=True)
class Found:
    """Rows to show, and how.

    Args:
        name: whose rows they are.
        rows: the artefact.
        tokenizer: of the model they are shown for (None: as they are).
    """

    name: str
    rows: Artefact
    tokenizer: Any = None


def choose(done: Run, stage: str | None = None, mask: bool = False) -> Found:
    """The rows of a stage; of a stage that trains, the rows it reads, as its model sees them.

    Args:
        done: the run.
        stage: a fingerprint's prefix, a class name, or a part (`Split.train`); None: what trains, else the last rows.
        mask: show any rows as the run's model sees them.

    Raises:
        UnknownStage: there is no such stage, no rows, or no model.
    """
    lines = {line["key"]: line for line in done.record["stages"]}
    fields = (done.store.read_json(f"runs/{done.id}/pipeline.json") or {}).get("stages", {})

    def rows_of(line: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What a stage that trains reads as `rows`."""
        held = fields.get(line["key"], {}).get("fields", {}).get("rows")
        return lines.get(held["$"]) if isinstance(held, dict) and "$" in held else None

    trains = [line for line in lines.values() if line["kind"] in ("adapter", "model") and rows_of(line)]
    if stage is not None:
        part = next((line for line in lines.values() if line["part"] and line["name"] == stage), None)
        line = part or done.line(stage)
    elif trains:
        line = trains[-1]
    else:
        made = [line for line in lines.values() if line["kind"] == "rows" and line["path"]]
        if not made:
            raise UnknownStage("the run has no rows yet", where=done.id, do="run the pipeline first")
        line = made[-1]
    shown, tokenizer = line, None
    if line["kind"] != "rows" and (read := rows_of(line)):
        shown = read
    if shown is not line or mask:
        model = _model_of(lines, line if shown is not line else next(iter(trains), None))
        if model is None:
            raise UnknownStage("the run has no model", where=done.id, do="leave --mask out")
        from graftline.stages.lm.load import load_tokenizer

        tokenizer = load_tokenizer(done.opened(model).directory("model"))
    return Found(shown["name"], done.opened(shown), tokenizer)


def _model_of(lines: Mapping[str, Mapping[str, Any]], line: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The model a stage trains (of an adapter: its base), else any model of the run."""
    waiting, seen = [line] if line is not None else [], set()
    while waiting:
        each = waiting.pop(0)
        if each["kind"] == "model" and each["path"] and each is not line:
            return each
        seen.add(each["key"])
        waiting += [lines[key] for key in each["inputs"] if key in lines and key not in seen]
    return next((each for each in lines.values() if each["kind"] == "model" and each["path"]), None)


def taken(artefact: Artefact, count: int, outcome: str = "kept") -> tuple[list[dict[str, Any]], int]:
    """The first rows (by id) of an artefact, and how many there are.

    Raises:
        UnknownStage: the artefact has no rows.
    """
    folder = OUTCOMES[outcome]
    if artefact.kind != "rows":
        raise UnknownStage(f"it makes a {artefact.kind}, not rows", where=artefact.path, do="name a stage of rows")
    if not artefact.files(f"{folder}/{artefact.part}"):
        return [], 0
    dataset = artefact.dataset(folder)
    total = dataset.count_rows()
    if "id" not in dataset.schema.names:
        return dataset.head(count).to_pylist(), total
    ids = dataset.to_table(columns=["id"])["id"].sort().slice(0, count)
    import pyarrow.compute as pc

    table = dataset.to_table(filter=pc.field("id").isin(ids.combine_chunks()))
    return table.sort_by("id").slice(0, count).to_pylist(), total


def rendered(row: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> RenderableType:
    """One row: its id and scores, then its turns, or (given a tokenizer) the chat template's text in colour."""
    parts = [_heading(row)]
    if "chosen" in row:
        parts += _turns(row.get("prompt") or ())
        parts += _turn("chosen", row["chosen"], "green") + _turn("rejected", row["rejected"], "red")
    elif tokenizer is not None and row.get("messages"):
        parts += [Text("  ").append_text(line) for line in supervised(row["messages"], tokenizer).split("\n")]
    else:
        parts += _turns(row.get("messages") or ())
    return Group(*parts, Text(""))


def supervised(messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> Text:
    """The text a model is trained on, the tokens whose loss counts in colour, and how many they are."""
    from graftline.stages.lm.chat import render_supervised

    text = Text()
    try:
        ids, mask = render_supervised(tokenizer, messages)
    except RowFault as fault:
        for each in _turns(messages):
            text.append_text(each).append("\n")
        return text.append(f"not trained: {visible(str(fault))}", "bold red")
    for trained, span in itertools.groupby(range(len(ids)), key=lambda index: bool(mask[index])):
        words = tokenizer.decode([ids[index] for index in span], skip_special_tokens=False)
        text.append(visible(words), TRAINED if trained else UNTRAINED)
    if not text.plain.endswith("\n"):
        text.append("\n")
    return text.append(f"{sum(map(bool, mask))} of {len(ids)} tokens are trained", "italic dim")


def _heading(row: Mapping[str, Any]) -> Text:
    text = Text(visible(str(row.get("id", ""))), "bold")
    if row.get("source"):
        text.append(f"  {visible(str(row['source']))}", "dim")
    if gen := row.get("gen"):
        text.append(f"  by {visible(str(gen['stage']))}", "dim")
        text.append(f", round {gen['round']}" if gen.get("round") is not None else "", "dim")
    for name, value in row.items():
        if name not in FIXED and name not in PREFERENCE and name not in REASONS:
            text.append(f"  {name} ", "dim").append(visible(shown(value)), "yellow")
    for name in REASONS:
        if row.get(name):
            text.append(f"\n{name}: ", "red").append(visible(str(row[name])), "bold red")
    return text


def _turns(messages: Sequence[Mapping[str, str]]) -> list[Text]:
    return [line for turn in messages for line in _turn(turn["role"], turn["content"], ROLES.get(turn["role"], ""))]


def _turn(role: str, content: str, style: str) -> list[Text]:
    lines = visible(str(content)).split("\n")
    first = Text(f"  {visible(role):>9}  ", style).append(lines[0], "default")
    return [first, *(Text(f"{'':13}{line}") for line in lines[1:])]
