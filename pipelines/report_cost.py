"""The report's section on cost: seconds, calls, tokens and money of each stage, beside what the plan expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graftline.pipelines.report_rows import calls_of
from graftline.pipelines.words import number
from graftline.stages.expected import AMOUNTS

COLUMNS = {
    "requests": "model calls", "tokens_in": "tokens read", "tokens_out": "written", "tokens_scored": "scored",
    "tokens_trained": "trained",
}  # fmt: skip


def cost(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line for each stage that the pipeline has, and, apart, for those that others asked for (a sweep's trials):
    while these ran, the others waited, so the time of all leaves theirs out."""
    lines = [_line(stage) for stage in stages if stage["status"] != "pending" and not stage.get("part")]
    own = [line for line in lines if not line["asked"]]
    total: dict[str, float] = {name: sum(line[name] for line in lines) for name in AMOUNTS}
    total["seconds"] = sum(line["seconds"] or 0 for line in own)
    expected = [line["planned"] for line in lines if line["planned"]]
    return {
        "lines": own,
        "asked": [line for line in lines if line["asked"]],
        "total": total,
        "slowest": max((line["seconds"] or 0 for line in lines), default=0) or 1,
        "money": any(line["money"] for line in lines),
        "planned": any(plan.get(name) for plan in expected for name in COLUMNS),
        "columns": {name: head for name, head in COLUMNS.items() if total[name] or name == "requests"},
    }


def _line(stage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": stage["name"],
        "status": stage["status"],
        "seconds": stage.get("seconds"),
        **calls_of(stage),
        "asked": bool(stage.get("asked_by")),
        "planned": (stage.get("planned") or {}) if stage["status"] == "ran" else {},
    }


def beside_plan(line: Mapping[str, Any], name: str) -> str:
    """What the plan expected of a number, where it said something."""
    expected = line["planned"].get(name)
    return f"of {number(expected)}" if expected else ""
