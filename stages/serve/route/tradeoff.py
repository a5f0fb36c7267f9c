"""CARROT's rule, and what it yields for its money as mu goes from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

STEPS = 1000
"""Of mu, from 0 to 1."""


def chosen(quality: np.ndarray, costs: np.ndarray, mu: float) -> np.ndarray:
    """[prompts] (or one): the place of the target with the largest (1 − mu)·quality − mu·cost; of equals the cheapest,
    then the best, then the first.

    Args:
        quality, costs: [prompts, targets] (or [targets]).
    """
    import numpy as np

    worth = (1 - mu) * quality - mu * costs
    equal = worth == worth.max(-1, keepdims=True)
    cost = np.where(equal, costs, np.inf)
    equal &= cost == cost.min(-1, keepdims=True)
    return np.argmax(np.where(equal, quality, -np.inf), -1)


def swept(quality: np.ndarray, costs: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Each mu (in steps of 0.001) at which any choice changes, and the choices from there on: [points, prompts]."""
    import numpy as np

    mus, picks = [0.0], [chosen(quality, costs, 0.0)]
    for step in range(1, STEPS + 1):
        now = chosen(quality, costs, step / STEPS)
        if not np.array_equal(now, picks[-1]):
            mus.append(step / STEPS)
            picks.append(now)
    return mus, np.stack(picks)


def line(cost: Sequence[float], quality: Sequence[float]) -> tuple[list[float], list[float]]:
    """The line that joins single targets, from the cheapest to the best: the upper convex hull of their points, which
    is all that choosing among them blindly, by chance, can reach. Costs and qualities of its corners, upwards."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted(zip(cost, quality, strict=True), key=lambda point: (point[0], -point[1])):
        if corners and y <= corners[-1][1]:
            continue  # dearer, and no better
        while len(corners) > 1:
            (a, b), (c, d) = corners[-2:]
            if (d - b) * (x - a) > (y - b) * (c - a):
                break
            corners.pop()  # below the line from the one before it
        corners.append((x, y))
    return [x for x, _ in corners], [y for _, y in corners]


def areas(
    routed_cost: np.ndarray, routed_quality: np.ndarray, cost: np.ndarray, quality: np.ndarray
) -> tuple[float, float]:
    """Mean quality along the routed curve and along the line that joins the single targets, over the costs from the
    cheapest target's (the routed one's, if that is more) to the best one's.

    Args:
        routed_cost, routed_quality: [points].
        cost, quality: [targets].
    """
    import numpy as np

    corners = line(cost.tolist(), quality.tolist())
    low = max(corners[0][0], float(routed_cost.min()))
    over = np.linspace(low, max(low, corners[0][-1]), STEPS + 1)
    order = np.lexsort((routed_quality, routed_cost))
    routed = np.interp(over, routed_cost[order], routed_quality[order])
    return float(routed.mean()), float(np.interp(over, *corners).mean())


def report(
    targets: Sequence[str], groups: np.ndarray, mu: float, quality: np.ndarray, cost: np.ndarray,
    estimated_quality: np.ndarray, estimated_cost: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """The (cost, quality) curve beside the points of each target alone, over the prompts that all were tried on.

    Args:
        targets: ids.
        groups: [prompts], numbers.
        mu: the one the router is set to.
        quality, cost: [prompts, targets], as they were; nan where not tried.
        estimated_quality, estimated_cost: by routers that have not seen the prompt's group; nan where there was none.
    """
    import numpy as np

    from graftline.stages.evaluate import interval

    seen = ~np.isnan(quality + cost + estimated_quality + estimated_cost).any(1)
    if not seen.any():
        return {"prompts": 0}
    quality, cost, groups = quality[seen], cost[seen], groups[seen]
    guess, price = estimated_quality[seen], estimated_cost[seen]
    every = np.arange(len(quality))
    mus, picks = swept(guess, price)
    got, paid = quality[every, picks], cost[every, picks]

    def above(places: Sequence[int]) -> float:
        routed, joined = areas(
            paid[:, places].mean(1), got[:, places].mean(1), cost[places].mean(0), quality[places].mean(0)
        )
        return routed - joined

    routed, joined = areas(paid.mean(1), got.mean(1), cost.mean(0), quality.mean(0))
    own = chosen(guess, price, mu)
    return {
        "prompts": len(quality),
        "always": [
            {
                "target": target, "cost": float(cost[:, at].mean()), "quality": float(quality[:, at].mean()),
                "estimated_cost": float(price[:, at].mean()), "estimated_quality": float(guess[:, at].mean()),
                "roc_area": roc_area(quality[:, at], guess[:, at]),
            }
            for at, target in enumerate(targets)
        ],
        "routed": {
            "mu": mus, "cost": paid.mean(1).tolist(), "quality": got.mean(1).tolist(),
            "shares": {target: (picks == at).mean(1).tolist() for at, target in enumerate(targets)},
        },
        "own": {"mu": mu, "cost": float(cost[every, own].mean()), "quality": float(quality[every, own].mean())},
        "area": {"routed": routed, "line": joined},
        "above_line": interval.jackknife(above, groups.tolist()),
        "intervals": "95 %, jackknife over whole groups, the routers as they were fitted",
    }  # fmt: skip


def roc_area(quality: np.ndarray, estimate: np.ndarray) -> float | None:
    """How well estimates sort what went well from what did not; quality between 0 and 1 counts as both, by that share.
    None where all went one way.

    Args:
        quality, estimate: [prompts].
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score

    if not 0 < quality.sum() < len(quality):
        return None
    truth = np.repeat([1, 0], len(quality))
    weights = np.concatenate([quality, 1 - quality])
    return float(roc_auc_score(truth, np.tile(estimate, 2), sample_weight=weights))
