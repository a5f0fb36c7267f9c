"""What `Expand` has so far, what it asks, and how many rows each category is to have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graftline.stages.generate.children import Children
from graftline.stages.generate.questions import Questions
from graftline.stages.generate.rouge import Pool
from graftline.stages.shapes import RoundsState

EXPAND = """\
These instructions are of one kind:

{examples}

Write {outputs} new instructions of the same kind and style, each with another content. Put each one between <answer> \
and </answer>, and write nothing else."""
PAIR = """\
These are instructions of one kind, each with its response:

{examples}

Write {outputs} new ones of the same kind and style, each with another content and its own response. Put each one \
between <answer> and </answer>, in it the <instruction> and the <response>, and write nothing else."""


@dataclass
class Expansion(RoundsState):
    """What was written so far, by category."""

    children: Children = field(kw_only=True)
    questions: Questions = field(kw_only=True)
    seeds: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    wanted: Mapping[str, int] = field(default_factory=dict)
    pool: Pool = field(default_factory=Pool)
    kept: Counter[str] = field(default_factory=Counter)
    good: Counter[str] = field(default_factory=Counter)
    """Outputs that could be kept, also those above the number wanted."""
    due: Counter[str] = field(default_factory=Counter)
    """Outputs asked for."""


def apportioned(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Category → its number of `count`: the share rounded down, and one more for the largest remainders (ties by
    name), so that every one is hit to within one and all add up."""
    total = math.fsum(shares.values())
    exact = {category: count * share / total for category, share in sorted(shares.items()) if share > 0}
    found = {category: math.floor(number) for category, number in exact.items()}
    for category in sorted(exact, key=lambda name: (found[name] - exact[name], name))[: count - sum(found.values())]:
        found[category] += 1
    return found
