"""What fits where: the machine's or cluster's nodes, and what is free of them."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graftline.stages.errors import CannotPlace
from graftline.stages.shapes import Mapper, Rounds, Scorer
from graftline.stages.stage import Resources, Stage

KINDS = ("cpus", "gpus", "memory")


@dataclass(frozen=True)
class Node:
    """One node: its logical CPUs, GPUs and bytes of memory; whether the driver runs on it."""

    cpus: float
    gpus: float = 0.0
    memory: float = math.inf
    driver: bool = False


def this_machine() -> Node:
    """This machine as one node, within the container's limit of CPUs."""
    cpus = float(len(os.sched_getaffinity(0)))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()[:2]
        if limit != "max":
            cpus = min(cpus, max(1.0, math.ceil(int(limit) / int(period))))
    gpus = sum(1 for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit())
    return Node(cpus, float(gpus), driver=True)


@dataclass(frozen=True)
class Needs:
    """What a stage holds while it runs.

    Args:
        task: the task it runs in (of a chain: each of its tasks or actors).
        others: workers beside the task, which it starts itself.
        on_driver_node: whether the task must run where the driver does.
    """

    task: Resources
    others: tuple[Resources, ...] = ()
    on_driver_node: bool = False

    @property
    def all(self) -> tuple[Resources, ...]:
        return (self.task, *self.others)

    def __str__(self) -> str:
        total = {kind: sum(getattr(each, kind) or 0 for each in self.all) for kind in KINDS}
        return ", ".join(
            f"{value:g} {'bytes of ' if kind == 'memory' else ''}{kind}" for kind, value in total.items() if value
        )


def needs_of(stage: Stage, nodes: Sequence[Node]) -> Needs:
    """What a stage holds on such nodes."""
    if stage.on_driver_node:
        nodes = [node for node in nodes if node.driver] or nodes
    largest = max(node.cpus for node in nodes)
    engines = max(1, int(getattr(stage, "concurrency", 1)))
    task, *others = stage.footprint()
    if isinstance(stage, Rounds) and not others:
        engine = _given(task, max(1.0, largest // engines))
        return Needs(_given(Resources(cpus=0.0), 0.0), (engine,) * engines)
    if isinstance(stage, (Mapper, Scorer)) and stage.calls_model:
        return Needs(_given(task, max(1.0, largest // engines)))
    first = _given(task, largest if stage.whole_node else min(1.0, largest) if stage.on_driver_node else 1.0)
    return Needs(first, tuple(_given(each, 1.0) for each in others), stage.on_driver_node)


def _given(asked: Resources, default: float) -> Resources:
    """Resources with CPUs and threads filled in."""
    cpus = default if asked.cpus is None else asked.cpus
    return replace_resources(asked, cpus=float(cpus), threads=asked.threads or max(1, int(cpus)))


def replace_resources(resources: Resources, **changed: float | int | None) -> Resources:
    """A copy with other values."""
    fields = {name: getattr(resources, name) for name in Resources.model_fields}
    return Resources(**{**fields, **changed})


def fits(needs: Needs, nodes: Sequence[Node]) -> list[tuple[int, Resources]] | None:
    """For each of the resources, the position of a node that can give it, the largest first; None if they do not fit
    together."""
    free = list(nodes)
    placed: list[tuple[int, Resources]] = []
    order = sorted(needs.all, key=lambda each: (each.gpus, each.cpus or 0, each.memory or 0), reverse=True)
    for each in order:
        pinned = needs.on_driver_node and each is needs.task
        for index, node in enumerate(free):
            if pinned and not node.driver:
                continue
            if all(getattr(node, kind) + 1e-9 >= (getattr(each, kind) or 0) for kind in KINDS):
                free[index] = replace(
                    node, **{kind: getattr(node, kind) - (getattr(each, kind) or 0) for kind in KINDS}
                )
                placed.append((index, each))
                break
        else:
            return None
    return placed


def refuse_unplaceable(stage: Stage, nodes: Sequence[Node]) -> None:
    """Raises `CannotPlace`, with the sum, where a stage does not even fit the whole cluster."""
    needs = needs_of(stage, nodes)
    if fits(needs, nodes) is None:
        has = "; ".join(f"{node.cpus:g} cpus{f', {node.gpus:g} gpus' if node.gpus else ''}" for node in nodes)
        where = " on the driver's node" if needs.on_driver_node else ""
        raise CannotPlace(
            f"needs {needs} at once ({len(needs.all)} processes){where}; the cluster has {has}",
            where=stage.name,
            do="ask for less in `resources`, or run it on a larger cluster",
        )


class Capacity:
    """What of the nodes is free; a stage is let in only with all it needs, so that two half-placed ones never wait
    for each other.

    Args:
        nodes: the cluster.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        self._free = list(nodes)
        self._lock = threading.Lock()
        self._held: dict[str, list[tuple[int, Resources]]] = {}
        self._waiting: dict[str, int] = {}

    def admit(self, key: str, needs: Needs) -> bool:
        """Takes what a stage needs, if it is free."""
        with self._lock:
            placed = fits(needs, self._free)
            if placed is None:
                return False
            self._held[key] = placed
            self._change(placed, -1)
            return True

    def release(self, key: str) -> None:
        """Gives back what a stage held."""
        with self._lock:
            placed = self._held.pop(key, [])
            if not self._waiting.pop(key, 0):
                self._change(placed, 1)

    def wait(self, key: str) -> None:
        """Lends what a stage holds to others while it waits for another stage."""
        with self._lock:
            self._waiting[key] = self._waiting.get(key, 0) + 1
            if self._waiting[key] == 1:
                self._change(self._held.get(key, []), 1)

    def resume(self, key: str) -> None:
        """Takes it back, even where that is more than there is for a moment: Ray waits."""
        with self._lock:
            if self._waiting.get(key, 0) == 0:
                return
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                self._change(self._held.get(key, []), -1)

    def _change(self, placed: Sequence[tuple[int, Resources]], sign: int) -> None:
        for index, each in placed:
            node = self._free[index]
            self._free[index] = replace(
                node, **{kind: getattr(node, kind) + sign * (getattr(each, kind) or 0) for kind in KINDS}
            )
