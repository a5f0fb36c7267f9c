"""`run`: a pipeline's artefacts in the store, what is there taken, the rest made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftline.pipelines.artefacts import Artefacts
from graftline.pipelines.budget import Budget, Purse
from graftline.pipelines.graph import Graph, roots_of
from graftline.pipelines.load_file import from_table
from graftline.pipelines.placing import this_machine
from graftline.pipelines.planning import file_of_caller, folder_of_caller, latest_lock, name_of, planned
from graftline.pipelines.record import LATEST, Record
from graftline.pipelines.runner import Event, Runner
from graftline.pipelines.store import Store
from graftline.pipelines.workers import HERE
from graftline.stages.artefact import Artefact
from graftline.stages.errors import InvalidField, StoreFailed, UnknownStage
from graftline.stages.stage import Stage, View


@dataclass(frozen=True)
class Run:
    """A run that is over, as its record in the store has it; `run["report"]` is an artefact.

    Args:
        store: the store.
        record: `run.json`.
    """

    store: Store
    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def path(self) -> str:
        """Its folder on the store's filesystem."""
        return self.store.path(f"runs/{self.id}")

    @property
    def state(self) -> str:
        """running, done, failed or interrupted."""
        return str(self.record["state"])

    @property
    def seconds(self) -> float:
        """Of wall clock, downloads left out."""
        return float(self.record["seconds"])

    @property
    def fetch_seconds(self) -> float:
        """Spent on downloads by the stages that ran."""
        return float(self.record["fetch_seconds"])

    @property
    def ran(self) -> int:
        """Stages that were made (parts of a stage are not counted)."""
        return self._count("ran")

    @property
    def cached(self) -> int:
        """Stages that were taken from the store."""
        return self._count("cached")

    def _count(self, status: str) -> int:
        return sum(stage["status"] == status and not stage["part"] for stage in self.record["stages"])

    @property
    def results(self) -> tuple[str, ...]:
        """The names of the pipeline's results."""
        return tuple(self.record["results"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __getitem__(self, name: str) -> Artefact:
        """A result's artefact."""
        if name not in self.record["results"]:
            raise UnknownStage(f"the run has no {name!r}", where=self.id, do=f"use one of {', '.join(self.results)}")
        key = self.record["results"][name]
        return self.opened(next(stage for stage in self.record["stages"] if stage["key"] == key))

    @classmethod
    def find(cls, store: Store, name: str = "latest") -> Run:
        """A run by its id, a unique beginning of it, or `latest`.

        Raises:
            UnknownStage: there is no such run, or there are several.
        """
        if name == "latest":
            name = str((store.read_json(LATEST) or {}).get("id", ""))
        ids = [run.rstrip("/").rpartition("/")[2] for run in store.list("runs") if run.endswith("/")]
        found = [each for each in ids if each == name] or [each for each in ids if name and each.startswith(name)]
        record = store.read_json(f"runs/{found[0]}/run.json") if len(found) == 1 else None
        if record is None:
            several = f"; {', '.join(found)} begin with it" if len(found) > 1 else ""
            raise UnknownStage(
                f"there is no run {name or 'yet'}{several}", where=store.shown, do="give a run's id, or latest"
            )
        return cls(store, record)

    def line(self, stage: str) -> Mapping[str, Any]:
        """The line of a stage by the beginning of its fingerprint, its name or its class's name.

        Raises:
            UnknownStage: there is no such stage, or there are several.
        """
        lines = [line for line in self.record["stages"] if not line["part"]]
        found = [
            line
            for line in lines
            if stage in (line["name"], line["class"].rpartition(".")[2], line["class"])
            or (len(stage) >= 4 and line["fingerprint"].startswith(stage))
        ]
        if len({line["fingerprint"] for line in found}) != 1:
            known = ", ".join(f"{line['name']} ({line['fingerprint'][:8]})" for line in found or lines)
            what = f"several stages are {stage!r}" if found else f"the run has no stage {stage!r}"
            raise UnknownStage(what, where=self.id, do=f"use one of {known}")
        return found[0]

    def opened(self, line: Mapping[str, Any]) -> Artefact:
        """The artefact of a line of the record's table of stages.

        Raises:
            StoreFailed: it is not there, or not whole.
        """
        found = Artefacts(self.store).at(self.store.name(line["path"])) if line["path"] else None
        if found is None:
            raise StoreFailed(
                "its artefact is not in the store", where=f"{self.id}: {line['name']}", do="run the pipeline again"
            )
        return found.view(line["part"]) if line["part"] else found


def run(
    pipeline: Any,
    store: Store | str | None = None,
    budget: Budget | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    name: str | None = None,
    address: str | None = None,
    watch: Callable[[Event], None] | None = None,
    parameters: Mapping[str, Any] | None = None,
    file: str | None = None,
    lock: Mapping[str, Any] | None = None,
) -> Run:
    """Runs a pipeline. Run it again after an interruption, a kill or a failure: it continues.

    Args:
        pipeline: a stage, a mapping of names to stages, or a function that returns one of the two.
        store: the store (None: GRAFTLINE_STORE, else ./graftline-store).
        budget: what it may spend.
        base: the folder from which relative paths count (None: the caller's file's).
        name: of the pipeline (None: the caller's file's).
        address: a Ray cluster to join (None: RAY_ADDRESS, else a local one of its own); "here": this process, without
            Ray, for a debugger.
        watch: hears of what happens.
        parameters, file: what the pipeline was built with and from, for the record.
        lock: an earlier run's `lock.json` (None: that of the pipeline's latest run in this store).

    Raises:
        RequestError: the request was wrong; nothing was started.
        GraftlineError: a stage failed; what was made so far is kept.
    """
    folder = str(base) if base is not None else folder_of_caller()
    file = file if file is not None else file_of_caller()
    return execute(
        roots_of(pipeline),
        store if isinstance(store, Store) else Store.default(store),
        budget or Budget(),
        folder,
        name or name_of(file),
        address,
        watch or (lambda event: None),
        parameters or {},
        file,
        lock,
    )


def retry(
    stage: str,
    of: str = "latest",
    store: Store | str | None = None,
    budget: Budget | None = None,
    *,
    address: str | None = None,
    watch: Callable[[Event], None] | None = None,
) -> Run:
    """Makes one stage of a run again, as a new generation, then what depends on it and finds its digest changed.

    Args:
        stage: the beginning of its fingerprint, its name or its class's name.
        of: the run: its id, a unique beginning of it, or `latest`.
        store, budget, address, watch: as for `run`.
    """
    place = store if isinstance(store, Store) else Store.default(store)
    earlier = Run.find(place, of)
    line = earlier.line(stage)
    table = place.read_json(f"runs/{earlier.id}/pipeline.json") or {}
    loaded = from_table(table, f"{earlier.path}/pipeline.json", place.read_json(f"runs/{earlier.id}/lock.json"))
    graph = Graph.of(loaded.roots)
    if line["key"] not in graph.stages:
        names = {each["key"]: each["name"] for each in earlier.record["stages"]}
        asking = names.get(line.get("asked_by", ""), "another stage")
        raise UnknownStage(f"{asking} asked for it", where=line["name"], do=f"retry {asking}")
    key = line["key"]
    while key in graph.fused:
        key = graph.fused[key].key
    return execute(
        loaded.roots,
        place,
        budget or Budget(),
        loaded.base,
        loaded.name,
        address,
        watch or (lambda event: None),
        loaded.parameters,
        loaded.file,
        loaded.lock,
        frozenset({key}),
    )


def execute(
    roots: Mapping[str, Stage],
    store: Store,
    budget: Budget,
    base: str,
    name: str,
    address: str | None,
    watch: Callable[[Event], None],
    parameters: Mapping[str, Any],
    file: str,
    lock: Mapping[str, Any] | None,
    again: frozenset[str] = frozenset(),
) -> Run:
    """`run`, with everything given; `again`: keys of stages to make anew."""
    lock = lock if lock is not None else latest_lock(store, name)
    elsewhere = address != HERE and (address or os.environ.get("RAY_ADDRESS") or _connected())
    nodes = None if elsewhere else [this_machine()]
    plan = planned(roots, store, base, nodes, lock, again=lambda stage: stage.key in again)
    services = [step for step in plan.steps if step.kind == "service" and step.status != "cached"]
    if address == HERE and services:
        raise InvalidField(
            "a service runs on Ray", where=services[0].name, do=f"run it without the address {HERE!r}, or leave it out"
        )
    store.writable()
    record = Record(store, plan, name, parameters, file)
    for step in plan.steps:
        if not isinstance(step.stage, View):
            watch(Event("planned", step.key, step.name))
    runner = Runner(store, plan, record, Purse(budget), watch, address, again)
    try:
        runner.execute(plan)
    except KeyboardInterrupt as error:
        runner.cancel()
        record.finish("interrupted", error)
        raise
    except Exception as error:
        record.finish("failed", error)
        raise
    else:
        record.finish("done")
    finally:
        runner.close()
    from graftline.pipelines import report

    done = Run(store, record.run)
    report.write(done)
    return done


def _connected() -> bool:
    import sys

    ray = sys.modules.get("ray")
    return ray is not None and bool(getattr(ray, "is_initialized", lambda: False)())
