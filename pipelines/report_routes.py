"""The report's section on routers: which targets, how many prompts each is known by, how often they are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graftline.pipelines import report_charts
from graftline.pipelines.report_models import json_of

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact


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
