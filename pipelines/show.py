"""A run, one of its stages, and lists of both, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graftline.pipelines.words import duration, error_text, number, shown, spaced, visible

if TYPE_CHECKING:
    from graftline.pipelines.store import Store

STATES = {"done": "green", "ran": "green", "cached": "dim green", "failed": "bold red", "interrupted": "yellow",
          "stopped": "yellow", "running": "cyan", "pending": "dim"}  # fmt: skip
SPENT = {"requests": "calls", "tokens_in": "read", "tokens_out": "written", "tokens_scored": "scored",
         "tokens_trained": "trained"}  # fmt: skip
"""What is spent → its column; all but the calls in tokens."""
SUMS = {"requests": "model calls", "tokens_in": "tokens read", "tokens_out": "written", "tokens_scored": "scored",
        "tokens_trained": "trained", "money": "paid"}  # fmt: skip
SIGNS = {"": "", "~": "~", "<=": "≤"}


def run(record: Mapping[str, Any]) -> RenderableType:
    """A run: its head, and a line for each stage."""
    head = Text.assemble(
        (record["pipeline"], "bold"), "  ", (record["state"], STATES.get(record["state"], "")), "  ",
        (record["id"], "dim"), "  ", (took(record), "dim"),
    )  # fmt: skip
    table = _table("", "stage", "state", ">time", ">in", ">kept", ">filtered", ">failed", "figures")
    for stage in record["stages"]:
        rows = stage.get("rows") or {}
        table.add_row(
            Text(stage["fingerprint"][:8], "dim"),
            Text(visible(stage["name"])),
            Text(stage["status"], STATES.get(stage["status"], "")),
            "" if stage.get("seconds") is None else duration(stage["seconds"]),
            *(number(rows[name]) if name in rows else "" for name in ("in", "kept")),
            *(_count(rows.get(name)) for name in ("filtered", "failed")),
            Text(figures(stage.get("metrics") or {}), "dim", overflow="ellipsis", no_wrap=True),
        )
    parts: list[RenderableType] = [head, table]
    if record.get("error"):
        parts.append(Text(visible(error_text(record["error"])), "bold red"))
    results = record.get("results") or {}
    names = {stage["key"]: stage["name"] for stage in record["stages"]}
    if results:
        told = ", ".join(f"{name} = {names.get(key, key[:8])}" if name else names.get(key, "") for name, key in
                         results.items())  # fmt: skip
        parts.append(Text(f"results: {visible(told)}", "dim"))
    return Group(*parts)


def took(record: Mapping[str, Any]) -> str:
    """How long a run took, downloads apart."""
    fetched = record.get("fetch_seconds")
    return duration(record.get("seconds")) + (f" and {duration(fetched)} of downloads" if fetched else "")


def stage(line: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> RenderableType:
    """One stage of a run: its line, and the manifest of its artefact where there is one."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    facts: dict[str, Any] = {name: line.get(name) for name in ("class", "kind", "status", "why", "path")}
    if line.get("part"):
        facts["part"] = line["part"]
    names = ("fingerprint", "digest", "seconds", "rows", "calls", "metrics", "threads", "reproducible", "versions")
    facts |= {name: (manifest or line).get(name) for name in names}
    if manifest and manifest.get("files"):
        size = sum(file.get("bytes", 0) for file in manifest["files"].values())
        facts["files"] = f"{len(manifest['files'])}, {number(size)} bytes"
    for name, value in facts.items():
        if value is None or value == "" or value == {}:
            continue
        if isinstance(value, Mapping):
            value = "\n".join(f"{key} {shown(each)}" for key, each in value.items() if each not in ({}, None, ""))
        table.add_row(Text(name), Text(visible(shown(value) if name != "seconds" else duration(value))))
    return Group(Text(visible(line["name"]), "bold"), table)


def figures(metrics: Mapping[str, Any], most: int = 3) -> str:
    """The first few numbers of a stage's metrics."""
    numeric = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    return ", ".join(f"{spaced(name)} {shown(value)}" for name, value in list(numeric.items())[:most])


def plan(planned: Mapping[str, Any]) -> RenderableType:
    """A plan: a line for each step but views, and what will be spent. Of what is not counted or asked for a mark says
    whether it is expected (~) or the most it can be (≤)."""
    table = _table("", "stage", "state", ">rows", *(f">{name}" for name in SPENT.values()), "why")
    steps = [step for step in planned["steps"] if not step["part"]]
    for step in steps:
        cached = step["status"] == "cached"
        table.add_row(
            Text(step["fingerprint"][:8], "dim"),
            Text(visible(step["name"])),
            Text("in the store" if cached else step["status"], "dim green" if cached else "bold cyan"),
            _marked(step["rows"], "kept") if step["kind"] == "rows" else "",
            *("" if cached else _marked(step["calls"], name) for name in SPENT),
            Text(visible(step["why"]), "dim"),
        )
    waiting = [step for step in steps if step["status"] != "cached"]
    told = f"{len(steps) - len(waiting)} in the store, {len(waiting)} to run"
    told += "".join(f", {_sum(waiting, amount)} {name}" for amount, name in SUMS.items() if _sum(waiting, amount))
    return Group(table, Text(f"{told}; store {planned['store']}", "dim"))


def _sum(steps: list[Mapping[str, Any]], amount: str) -> str:
    """About how much of something, nothing where none is spent; where a step cannot say, at least what the others do;
    where one is at its bound, at most."""
    found = [step["calls"][amount] for step in steps]
    if not any(value is None or value for value in found):
        return ""
    at_most = any(step["calls"]["mark"] == "<=" and step["calls"][amount] for step in steps)
    word = "at least" if None in found else "at most about" if at_most else "about"
    total = sum(value or 0 for value in found)
    return f"{word} {total:.2f}" if amount == "money" else f"{word} {number(total)}"


def _marked(told: Mapping[str, Any], name: str) -> str:
    """A number with its mark."""
    value = told[name]
    if value is None:
        return "?"
    return f"{SIGNS[told['mark']]}{number(value)}" if value or name == "kept" else ""


def records(store: Store) -> list[dict[str, Any]]:
    """What `ls` says of each run, the latest first."""
    found = []
    for name in reversed(store.list("runs")):
        record = store.read_json(f"{name}run.json") if name.endswith("/") else None
        if record is not None:
            statuses = [line["status"] for line in record["stages"] if not line["part"]]
            counts = {"ran": statuses.count("ran"), "cached": statuses.count("cached")}
            names = ("id", "pipeline", "state", "started", "seconds", "fetch_seconds")
            found.append({each: record[each] for each in names} | counts)
    return found


def artefacts(store: Store) -> list[dict[str, Any]]:
    """What `ls` says of each committed artefact."""
    from graftline.pipelines.artefacts import Artefacts

    return [
        {
            "stage": made.manifest["stage"],
            "kind": made.kind,
            "fingerprint": made.fingerprint,
            "digest": made.manifest["digest"],
            "rows": (made.manifest.get("rows") or {}).get("kept") if made.kind == "rows" else None,
            "bytes": sum(file["bytes"] for file in made.manifest["files"].values()),
            "path": made.path,
        }
        for made in Artefacts(store).listed()
    ]


def listing(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> RenderableType:
    """The runs and artefacts of a store."""
    if not found["runs"] and not found["artefacts"]:
        return Text("the store is empty", "dim")
    runs = _table("run", "pipeline", "state", ">time", ">ran", ">cached")
    for record in found["runs"]:
        runs.add_row(
            Text(record["id"]),
            Text(visible(record["pipeline"])),
            Text(record["state"], STATES.get(record["state"], "")),
            duration(record["seconds"]),
            number(record["ran"]),
            number(record["cached"]),
        )
    made = _table("artefact", "kind", "fingerprint", "digest", ">rows", ">bytes")
    for each in found["artefacts"]:
        made.add_row(
            Text(visible(each["stage"])),
            each["kind"],
            Text(each["fingerprint"][:12], "dim"),
            Text(each["digest"][:12], "dim"),
            "" if each["rows"] is None else number(each["rows"]),
            number(each["bytes"]),
        )
    total = sum(each["bytes"] for each in found["artefacts"])
    return Group(runs, "", made, Text(f"{len(found['artefacts'])} artefacts, {number(total)} bytes", "dim"))


def collected(gone: Sequence[Mapping[str, Any]], dry_run: bool) -> RenderableType:
    """What `gc` deleted, or would."""
    table = _table("deleted" if not dry_run else "would go", ">bytes")
    for each in gone:
        table.add_row(Text(visible(each["name"])), number(each["bytes"]))
    total = sum(each["bytes"] for each in gone)
    if not gone:
        return Text("nothing to collect", "dim")
    return Group(table, Text(f"{len(gone)} things, {number(total)} bytes", "dim"))


def methods(lines: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The table of methods, by slot."""
    table = _table("slot", "method", "class", "what it does")
    before = ""
    for line in lines:
        slot = "" if line["slot"] == before else line["slot"]
        before = line["slot"]
        name = line["class"].rpartition(".")[2]
        table.add_row(Text(slot, "bold"), Text(line["name"]), Text(name), Text(visible(line["summary"]), "dim"))
    return table


def _count(reasons: Mapping[str, int] | None) -> str:
    total = sum((reasons or {}).values())
    return number(total) if total else ""


def _table(*columns: str) -> Table:
    """A table without lines; a column whose name starts with `>` is set to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table
