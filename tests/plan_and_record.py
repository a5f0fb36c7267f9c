"""A plan beside what the run then recorded: rows, requests and tokens of every stage, and the totals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AMOUNTS = ("requests", "tokens_in", "tokens_out", "tokens_scored", "tokens_trained")


def far_off(plan: Mapping[str, Any], record: Mapping[str, Any], bounds: bool = True) -> list[str]:
    """What is more than a factor of two off, in words.

    Args:
        plan: as `graftline plan --json` gives it.
        record: `run.json`.
        bounds: whether what the plan marks as a bound must be near, too; else it must only hold.
    """
    lines = {line["key"]: line for line in record["stages"]}
    assert {step["key"] for step in plan["steps"]} == set(lines), "the plan names every stage that was made"
    wrong = []
    for step in plan["steps"]:
        line = lines[step["key"]]
        pairs = [(name, step["calls"][name], line["calls"].get(name) or 0, step["calls"]["mark"]) for name in AMOUNTS]
        if step["rows"] is not None:
            pairs.append(("rows", step["rows"]["kept"], line["rows"]["kept"], step["rows"]["mark"]))
        wrong += [f"{step['name']}: {fault}" for fault in _faults(pairs, bounds)]
    totals = [(name, plan["calls"][name], record["calls"][name], plan["calls"]["mark"]) for name in AMOUNTS]
    return wrong + [f"in all: {fault}" for fault in _faults(totals, bounds)]


def _faults(pairs: list[tuple[str, float | None, float, str]], bounds: bool) -> list[str]:
    found = []
    for name, planned, counted, mark in pairs:
        near = planned is not None and planned <= 2 * counted and counted <= 2 * planned
        if not near and (bounds or mark != "<=" or planned is None or counted > planned):
            found.append(f"{planned} {name} planned, {counted} counted")
    return found
