"""Shares with their 95 % confidence intervals, where rows of one group count as one draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftline.stages.rows import joined, split_groups

if TYPE_CHECKING:
    import numpy as np

DRAWS = 1000
Z = 1.959964


def clusters(groups: Sequence[str]) -> list[int]:
    """A number for each row; rows whose groups are joined have the same."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in joined([split_groups(group) for group in groups])]


def share(correct: Sequence[bool], cluster: Sequence[int], seed: int) -> dict[str, Any]:
    """The share of true values: `value`, `n`, `ci_low`, `ci_high`.

    Wilson's interval where every row is a cluster of its own, else the percentiles of 1000 bootstrap draws over
    clusters.
    """
    n = len(correct)
    value = sum(correct) / n
    if len(set(cluster)) == n:
        low, high = wilson(value, n)
    else:
        low, high = _percentiles(_resampled([[float(one)] for one in correct], cluster, seed)[:, 0])
    return {"value": value, "n": n, "ci_low": low, "ci_high": high}


def described(cluster: Sequence[int]) -> str:
    """How `share` finds its intervals, as a report says it."""
    groups = len(set(cluster))
    return "95 %, Wilson" if groups == len(cluster) else f"95 %, {DRAWS} bootstrap draws over {groups} groups"


def gain(before: Sequence[bool], after: Sequence[bool], cluster: Sequence[int], seed: int) -> dict[str, Any]:
    """How much larger the share is after than before, on the same rows (paired bootstrap over clusters)."""
    pairs = [[float(one), float(other)] for one, other in zip(before, after, strict=True)]
    drawn = _resampled(pairs, cluster, seed)
    low, high = _percentiles(drawn[:, 1] - drawn[:, 0])
    return {"value": (sum(after) - sum(before)) / len(pairs), "n": len(pairs), "ci_low": low, "ci_high": high}


def wilson(value: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    middle = (value + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _resampled(values: Sequence[Sequence[float]], cluster: Sequence[int], seed: int) -> np.ndarray:
    """Means of the columns in each draw: as many clusters as there are, with replacement, each with all its rows."""
    import numpy as np

    names = {name: index for index, name in enumerate(dict.fromkeys(cluster))}
    sums = np.zeros((len(names), len(values[0])))
    sizes = np.zeros(len(names))
    for name, row in zip(cluster, values, strict=True):
        sums[names[name]] += row
        sizes[names[name]] += 1
    generator = np.random.default_rng(seed)
    even = np.full(len(names), 1 / len(names))
    drawn = [generator.multinomial(len(names), even, size=50) for _ in range(DRAWS // 50)]
    return np.concatenate([(times @ sums) / (times @ sizes)[:, None] for times in drawn])


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
