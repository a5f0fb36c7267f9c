"""The plan: in which order, what is in the store, what will run, and roughly how much. Needs no Ray and no GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from graftline.pipelines.artefacts import Artefacts
from graftline.pipelines.context import absolute
from graftline.pipelines.estimate import estimates
from graftline.pipelines.graph import Graph, Known, roots_of
from graftline.pipelines.pins import OutsidePins
from graftline.pipelines.placing import Node, refuse_unplaceable, this_machine
from graftline.pipelines.sources import source_digest
from graftline.pipelines.store import Store
from graftline.stages.errors import GraftlineError, RequestError
from graftline.stages.expected import Expected, Mark, Usage
from graftline.stages.stage import Stage, View
from graftline.stages.value_graph import walk

Status = Literal["cached", "run", "unknown inputs"]


@dataclass(frozen=True)
class Step:
    """One stage of a plan.

    Args:
        key: the stage's key.
        stage: the stage.
        name: how people see it.
        kind: what it makes.
        fingerprint: what is asked.
        status: in the store; to be run; or, its inputs being made first, perhaps in the store.
        inputs: keys of what it reads.
        fused: key of the stage in whose tasks it runs ("" = its own).
        rows: how many it is expected to make (of a cached stage: counted); None: not known, or it makes none.
        mark: how well they are known: "" counted or asked for, "~" expected, "<=" at most.
        calls: what it is expected to ask models for, under the names that a run's record has.
        times: how often it is made, where it stands for several (a sweep's trials); `calls` are of all of them.
        columns: column → type of what it makes.
        why: what is worth saying about the status.
    """

    key: str
    stage: Stage
    name: str
    kind: str
    fingerprint: str
    status: Status
    inputs: tuple[str, ...]
    fused: str = ""
    rows: int | None = None
    mark: Mark = ""
    calls: Usage = field(default_factory=Usage)
    times: float = 1.0
    columns: Mapping[str, str] = field(default_factory=dict)
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "name": self.name,
            "class": self.stage.qualified,
            "kind": self.kind,
            "part": self.stage.part if isinstance(self.stage, View) else "",
            "fingerprint": self.fingerprint,
            "status": self.status,
            "inputs": list(self.inputs),
            "fused": self.fused,
            "rows": {"kept": self.rows, "mark": self.mark} if self.kind == "rows" else None,
            "calls": {**self.calls.to_dict(), "mark": self.calls.mark},
            "times": self.times,
            "columns": dict(self.columns),
            "why": self.why,
        }


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Args:
        steps: in an order in which they can run.
        roots: name → key of the pipeline's results.
        store: where it looked, as shown.
        base: the folder from which relative paths count.
        graph, known, pins: what `run` goes on with.
        later: what the steps will ask for themselves (a sweep's trials), as far as that is known.
        expected: key → what is expected of each stage, and of those that they ask for.
    """

    steps: tuple[Step, ...]
    roots: Mapping[str, str]
    store: str
    base: str
    graph: Graph
    known: Known
    pins: OutsidePins
    later: tuple[Step, ...] = ()
    expected: Mapping[str, Expected] = field(default_factory=dict)

    @property
    def calls(self) -> Usage:
        """What all steps that are to run, and those that they will ask for, are expected to ask models for."""
        return sum((step.calls for step in (*self.to_run, *self.later) if step.status != "cached"), Usage())

    @property
    def to_run(self) -> tuple[Step, ...]:
        """The steps that are not in the store."""
        return tuple(step for step in self.steps if step.status != "cached")

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "store": self.store,
            "base": self.base,
            "roots": dict(self.roots),
            "steps": [step.to_dict() for step in (*self.steps, *self.later)],
            "calls": {**self.calls.to_dict(), "mark": self.calls.mark},
        }


def plan(
    pipeline: Any,
    store: Store | str | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    address: str | None = None,
    name: str | None = None,
    lock: Mapping[str, Any] | None = None,
) -> Plan:
    """Looks at a pipeline: what is in the store and what will run.

    Args:
        pipeline: a stage, a mapping of names to stages, or a function that returns one of the two.
        store: the store (None: GRAFTLINE_STORE, else ./graftline-store).
        base: the folder from which relative paths count (None: the caller's file's).
        address: the cluster it will run on; None: RAY_ADDRESS, else this machine, which must be large enough.
        name: of the pipeline (None: the caller's file's).
        lock: an earlier run's `lock.json` (None: that of the latest run of this name in the store).

    Raises:
        RequestError: what is wrong with it; several things at once, where there are several.
    """
    place = store if isinstance(store, Store) else Store.default(store)
    return planned(
        roots_of(pipeline),
        place,
        str(base) if base is not None else folder_of_caller(),
        nodes=None if address or os.environ.get("RAY_ADDRESS") else [this_machine()],
        lock=lock if lock is not None else latest_lock(place, name or name_of(file_of_caller())),
    )


def file_of_caller(depth: int = 2) -> str:
    """The file that calls `plan` or `run`; "" at a prompt."""
    file = sys._getframe(depth).f_globals.get("__file__")
    return str(Path(file).absolute()) if file else ""


def folder_of_caller(depth: int = 3) -> str:
    """The folder of the file that calls `plan` or `run`; at a prompt, the current one."""
    file = file_of_caller(depth)
    return str(Path(file).parent) if file else os.getcwd()


def name_of(file: str) -> str:
    """What a pipeline is called whose file this is."""
    return Path(file).stem or "pipeline"


def latest_lock(store: Store, name: str) -> dict[str, Any] | None:
    """The lock of the latest run of a pipeline of this name: a run that is continued uses the same models."""
    runs = [run.rstrip("/") for run in store.list("runs") if run.endswith("/")]
    own = [run for run in runs if run.rpartition("-")[0].endswith(f"Z-{name}")]
    return store.read_json(f"{own[-1]}/lock.json") if own else None


def planned(
    roots: Mapping[str, Stage],
    store: Store,
    base: str,
    nodes: list[Node] | None = None,
    lock: Mapping[str, Any] | None = None,
    pins: OutsidePins | None = None,
    known: Known | None = None,
    again: Callable[[Stage], bool] = lambda stage: False,
) -> Plan:
    """`plan`, with everything given.

    Args:
        nodes: the cluster that must be large enough (None: not known yet).
        pins: an outside world that was looked at already.
        known: artefacts that are known already.
        again: stages to make anew, whatever is in the store.
    """
    graph = Graph.of(roots)
    pins = pins or OutsidePins(base, lock)
    wrong = _Wrong()
    for node in walk(*graph.stages.values()):
        with wrong:
            node.pins(pins)
    wrong.refuse()
    graph.fingerprinted(pins)
    known = known or Known(Artefacts(store))
    states = {stage.key: _state(graph, known, stage, again) for stage in graph.stages.values()}
    for stage in reversed(graph.stages.values()):
        if stage.key in graph.fused and states[stage.key][0] != "cached":
            reader = graph.fused[stage.key]
            states[stage.key] = (states[reader.key][0], f"runs in the tasks of {reader.name}")
    for stage in graph.stages.values():
        if states[stage.key][0] != "cached" and not isinstance(stage, View):
            with wrong:
                stage.preflight(lambda path: absolute(path, base))
            if nodes is not None:
                with wrong:
                    refuse_unplaceable(stage, nodes)
    wrong.refuse()
    asked: dict[str, Plan] = {}
    expected: dict[str, Expected] = {}
    for stage in graph.stages.values():
        if states[stage.key][0] != "cached" and (foreseen := stage.foreseen()):
            asked[stage.key] = planned(foreseen, store, base, nodes, pins=pins, known=known)
            expected |= asked[stage.key].expected
    expected = estimates(graph, known, lambda path: absolute(path, base), expected)
    steps = tuple(_step(graph, stage, *states[stage.key], expected[stage.key]) for stage in graph.stages.values())
    later: dict[str, Step] = {}
    for key, inner in asked.items():
        for step in (*inner.steps, *inner.later):
            if step.key not in graph.stages:
                later.setdefault(step.key, _asked_for(step, graph.stages[key].name, expected[key]))
    names = {name: stage.key for name, stage in roots.items()}
    return Plan(steps, names, store.shown, base, graph, known, pins, tuple(later.values()), expected)


def _state(graph: Graph, known: Known, stage: Stage, again: Callable[[Stage], bool]) -> tuple[Status, str]:
    if again(stage):
        return "run", "made again"
    found = known.look(graph, stage)
    if found is not None:
        then = found.manifest.get("source_digest")
        if not isinstance(stage, View) and then and then != source_digest(type(stage)):
            return "cached", "its code has changed since, its version has not"
        return "cached", ""
    if isinstance(stage, View) or not known.any(graph, stage):
        return "run", ""
    if known.identity(graph, known.chain(graph, stage)) is None:
        return "unknown inputs", "in the store, if its inputs come out as before"
    return "run", ""


def _asked_for(step: Step, by: str, asking: Expected) -> Step:
    """A step that another one asks for, perhaps so often that it stands for several."""
    times = f", {asking.times:g} times{' at most' if asking.times_mark else ''}" if asking.times > 1 else ""
    return replace(
        step,
        why=step.why or f"asked for by {by}{times}",
        calls=step.calls.times(asking.times, asking.times_mark),
        times=step.times * asking.times,
    )


def _step(graph: Graph, stage: Stage, status: Status, why: str, expected: Expected) -> Step:
    fused = graph.fused.get(stage.key)
    volume = expected.volume
    return Step(
        key=stage.key,
        stage=stage,
        name=stage.name,
        kind=stage.kind,
        fingerprint=graph.fingerprint(stage),
        status=status,
        inputs=tuple(each.key for each in graph.reads[stage.key]),
        fused=fused.key if fused is not None and why.startswith("runs in") else "",
        rows=volume.count if stage.kind == "rows" else None,
        mark=volume.mark if stage.kind == "rows" else "",
        calls=expected.usage if status != "cached" else Usage(),
        columns=stage.columns if stage.kind == "rows" else {},
        why=why,
    )


class _Wrong:
    """Collects errors of the request, so that all are told at once."""

    def __init__(self) -> None:
        self.found: list[GraftlineError] = []

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, GraftlineError):
            if str(error) not in map(str, self.found):
                self.found.append(error)
            return True
        return False

    def refuse(self) -> None:
        """Raises what was collected: one error as it is, several as one that lists them."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            kinds = {type(error) for error in self.found}
            kind = kinds.pop() if len(kinds) == 1 else RequestError
            lines = "".join(f"\n  - {error}" for error in self.found)
            raise kind(f"{len(self.found)} things are wrong:{lines}")
