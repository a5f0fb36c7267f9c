"""The table of methods: every stage and plug that Graftline ships, that a file defines, or that a package adds."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from graftline.stages.family import members
from graftline.stages.specification import Plug, Specification
from graftline.stages.stage import Stage


@dataclass(frozen=True)
class Method:
    """One line of the table."""

    name: str
    slot: str
    type: str
    qualified: str
    papers: tuple[str, ...]
    origin: str
    tier: int
    summary: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "class": self.qualified}


def families() -> Iterator[ModuleType]:
    """Every family package under `graftline.stages`, sub-families included."""
    import graftline.stages as root

    for found in pkgutil.walk_packages(root.__path__, "graftline.stages."):
        if found.ispkg:
            yield importlib.import_module(found.name)


def describe(kind: type[Specification], slot: str) -> Method:
    """The table's line of a class."""
    summary = (kind.__doc__ or "").strip().split("\n\n")[0]
    return Method(
        name=kind.method or f"{slot.replace('/', '.')}.{kind.__name__}",
        slot=slot,
        type="stage" if issubclass(kind, Stage) else "plug",
        qualified=kind.qualified,
        papers=tuple(paper.title for paper in kind.papers),
        origin=kind.origin,
        tier=kind.tier,
        summary=" ".join(summary.split()),
    )


def table() -> list[Method]:
    """Every method shipped here or installed through the entry-point group `graftline.methods`, by slot and name."""
    found = []
    for family in families():
        slot = family.__name__.removeprefix("graftline.stages.").replace(".", "/")
        # What has no id of its own (a slot's base class, a requirement) is no method.
        kinds = [kind for _, kind in members(family) if issubclass(kind, (Stage, Plug))]
        found += [describe(kind, slot) for kind in kinds if kind.method]
    for entry in entry_points(group="graftline.methods"):
        found.append(describe(entry.load(), f"installed/{entry.name}"))
    return sorted(found, key=lambda method: (method.slot, method.name))


def suppliers(column: str) -> list[str]:
    """Names of the stages that add a column."""
    found = []
    for family in families():
        for _, kind in members(family):
            if issubclass(kind, Stage) and column in kind.adds:
                found.append(f"{family.__name__.rpartition('.')[2]}.{kind.__name__}")
    return found
