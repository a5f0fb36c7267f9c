"""Which combinations of values a search tries, where that is known before the first trial."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from graftline.stages.rows import canonical, derived_seed
from graftline.stages.specification import plain, reference
from graftline.stages.sweep.domain import Domain

Point = tuple[Any, ...]
"""One value for each domain."""
MOST_DRAWS = 200
"""Draws for each trial wanted, after which the domains are taken to have no more combinations."""


def combinations(domains: Sequence[Domain]) -> int | None:
    """How many there are; None: endlessly many."""
    lists = [domain.listed() for domain in domains]
    return None if None in lists else math.prod(len(each or ()) for each in lists)


def grid_points(domains: Sequence[Domain]) -> list[Point]:
    """Every combination of listed values, the last domain's changing fastest."""
    return list(itertools.product(*(domain.listed() or () for domain in domains)))


def random_points(domains: Sequence[Domain], count: int, seed: int) -> list[Point]:
    """So many different combinations, or fewer where there are fewer. The first ones do not depend on `count`: more
    trials of the same sweep go on where it ended."""
    found: dict[str, Point] = {}
    for draw in range(count * MOST_DRAWS):
        point = tuple(domain.at(_share(seed, draw, place)) for place, domain in enumerate(domains))
        found.setdefault(written(point), point)
        if len(found) == count:
            break
    return list(found.values())


def written(point: Point) -> str:
    """A combination as text, equal for equal ones."""
    return canonical(plain(point, reference))


def _share(seed: int, draw: int, place: int) -> float:
    return (derived_seed(seed, f"trial {draw}", place) % 2**48) / 2**48
