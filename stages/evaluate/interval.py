"""Shares with their 95 % confidence intervals, where rows of one group count as one draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graftline.stages.rows import joined, split_groups

if TYPE_CHECKING:
    import numpy as np

DRAWS = 1000
BLOCKS = 50
"""Blocks of clusters that a jackknife leaves out, one at a time."""
Z = 1.959964


def clusters(groups: Sequence[str]) -> list[int]:
    """A number for each row; rows whose groups are joined have the same."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in joined([split_groups(group) for group in groups])]


def share(correct: Sequence[bool], cluster: Sequence[int], seed: int) -> dict[str, Any]:
    """The share of true values: `value`, `n`, `ci_low`, `ci_high`; nan of no value at all.

    Wilson's interval where every row is a cluster of its own, else the percentiles of 1000 bootstrap draws over
    clusters.
    """
    n = len(correct)
    if not n:
        return _nothing()
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
    if not before:
        return _nothing()
    pairs = [[float(one), float(other)] for one, other in zip(before, after, strict=True)]
    drawn = _resampled(pairs, cluster, seed)
    low, high = _percentiles(drawn[:, 1] - drawn[:, 0])
    return {"value": (sum(after) - sum(before)) / len(pairs), "n": len(pairs), "ci_low": low, "ci_high": high}


Weighted = Sequence[tuple[float, float]]
"""(value, weight), a row each."""


def mean(values: Weighted, cluster: Sequence[int], seed: int) -> dict[str, Any]:
    """The weighted mean, with the percentiles of 1000 bootstrap draws over clusters."""
    if not sum(weight for _, weight in values):
        return _nothing()
    drawn = _resampled([(value * weight, weight) for value, weight in values], cluster, seed)
    low, high = _percentiles(drawn[:, 0] / drawn[:, 1])
    return {"value": _mean(values), "n": len(values), "ci_low": low, "ci_high": high}


def mean_gain(before: Weighted, after: Weighted, cluster: Sequence[int], seed: int) -> dict[str, Any]:
    """How much larger the weighted mean is after than before, on the same rows (paired bootstrap over clusters)."""
    if not sum(weight for _, weight in before):
        return _nothing()
    rows = [(a * v, v, b * w, w) for (a, v), (b, w) in zip(before, after, strict=True)]
    drawn = _resampled(rows, cluster, seed)
    low, high = _percentiles(drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1])
    return {"value": _mean(after) - _mean(before), "n": len(rows), "ci_low": low, "ci_high": high}


def _mean(values: Weighted) -> float:
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)


def jackknife(statistic: Callable[[Sequence[int]], float], cluster: Sequence[int]) -> dict[str, Any]:
    """A number of all rows together, with an interval from leaving clusters out, which resampling cannot give where
    repeating a row changes the number (distinct words, say).

    Args:
        statistic: the number for some of the rows, by their places.
    """
    if not cluster:
        return _nothing()
    everything = range(len(cluster))
    value = statistic(everything)
    blocks: dict[int, int] = {}
    for name in cluster:
        blocks.setdefault(name, len(blocks) % BLOCKS)
    count = len(set(blocks.values()))
    if count < 2:
        return {"value": value, "n": len(cluster), "ci_low": value, "ci_high": value}
    left = [statistic([place for place in everything if blocks[cluster[place]] != block]) for block in range(count)]
    middle = sum(left) / count
    half = Z * math.sqrt((count - 1) / count * sum((each - middle) ** 2 for each in left))
    return {"value": value, "n": len(cluster), "ci_low": value - half, "ci_high": value + half}


def _nothing() -> dict[str, Any]:
    return {"value": math.nan, "n": 0, "ci_low": math.nan, "ci_high": math.nan}


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
