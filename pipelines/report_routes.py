"""The report's section on routers: which targets, how many prompts each is known by, how often they are told apart; of
targets that were tried, what routing yields for its cost beside each of them alone."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graftline.pipelines import report_charts
from graftline.pipelines.report_models import json_of

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact


MUS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Points of a curve that are shown."""


def tradeoff(stage: Mapping[str, Any], artefact: Artefact) -> dict[str, Any]:
    """What the choices of a router of tried targets cost and how good they were: `lines`, a target alone or a mu each,
    from the cheapest up, and what is said of the whole curve. Empty for any other report."""
    found = json_of(artefact, "report.json").get("tradeoff", {})
    if not found.get("prompts"):
        return {}
    routed, lines = found["routed"], [{**line, "alone": True} for line in found["always"]]
    for mu in sorted({*MUS, found["own"]["mu"]}):
        at = bisect.bisect_right(routed["mu"], mu) - 1  # a point holds until the next mu
        shares = {target: share[at] for target, share in routed["shares"].items() if share[at]}
        lines.append(
            {"mu": mu, "cost": routed["cost"][at], "quality": routed["quality"][at], "shares": shares, "alone": False}
        )
    return {
        "name": stage["name"],
        "prompts": found["prompts"],
        "lines": sorted(lines, key=lambda line: (line["cost"], line["quality"])),
        "own": found["own"]["mu"],
        "area": found["area"],
        "above": found["above_line"],
        "intervals": found["intervals"],
    }


def router(stage: Mapping[str, Any], artefact: Artefact) -> dict[str, Any]:
    """A router's targets: `prompts` it knows them by, and of these, tried without having seen them, the share it sent
    to the target they are from (`right`) and where the others went. Empty for what is no router's report."""
    report = json_of(artefact, "report.json")
    routes: Mapping[str, Mapping[str, int]] = report.get("routes") or {}
    targets = list(report.get("targets") or sorted(routes))
    cells = report.get("metrics", {}).get("routed_right", {})
    lines = []
    for target in targets if routes else []:
        counts = routes.get(target, {})
        cell = cells.get(target)
        elsewhere = sorted((each for each in counts.items() if each[0] != target), key=lambda each: (-each[1], each[0]))
        lines.append(
            {
                "target": target,
                "prompts": sum(counts.values()),
                "value": cell["value"] if cell else None,
                "low": cell["ci_low"] if cell else None,
                "high": cell["ci_high"] if cell else None,
                "svg": report_charts.interval(cell["value"], cell["ci_low"], cell["ci_high"]) if cell else "",
                "elsewhere": [{"target": name, "count": count} for name, count in elsewhere],
                "sent": sum(each.get(target, 0) for each in routes.values()),
            }
        )
    return {
        "name": stage["name"],
        "targets": lines,
        "all": cells.get("all"),
        "chooses": len(targets) > 1,
        "intervals": report.get("intervals", ""),
    }
