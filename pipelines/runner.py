"""Runs a plan: what is in the store is taken, the rest is made, independent branches side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from graftline.pipelines.board import LocalBoard, Told
from graftline.pipelines.budget import Purse
from graftline.pipelines.chains import run_chain
from graftline.pipelines.failures import Failure
from graftline.pipelines.graph import Graph
from graftline.pipelines.ledger import specification
from graftline.pipelines.placing import Capacity, Needs, needs_of, refuse_unplaceable, replace_resources
from graftline.pipelines.planning import Plan, planned
from graftline.pipelines.record import Record
from graftline.pipelines.store import Store
from graftline.pipelines.work import Work
from graftline.pipelines.workers import HERE, Here, Workers
from graftline.stages.artefact import Artefact
from graftline.stages.errors import BudgetSpent, GraftlineError, Stopped
from graftline.stages.rows import digest
from graftline.stages.shapes import Mapper, Rounds, Scorer
from graftline.stages.stage import Stage, View

TICK = 0.2
"""Seconds after which a waiting run looks around, so that Ctrl-C is noticed."""


@dataclass(frozen=True)
class Event:
    """Something worth showing while a run goes on.

    Args:
        kind: planned, ray, started, progress, done, cached, stopped or failed.
        key, name: the stage's (of `ray`: a note).
        done, total: how far it is; 0 where not known.
        numbers: a few more.
    """

    kind: str
    key: str = ""
    name: str = ""
    done: int = 0
    total: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)


class Runner:
    """Makes stages, each once, whoever asks.

    Args:
        store: the store.
        plan: the pipeline's plan.
        record: the run's record.
        purse: what may be spent.
        watch: hears of events.
        address: where to run (`run`).
        again: keys of stages to make anew.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        record: Record,
        purse: Purse,
        watch: Callable[[Event], None],
        address: str | None = None,
        again: frozenset[str] = frozenset(),
    ) -> None:
        self.store, self.plan, self.record, self.purse, self.watch = store, plan, record, purse, watch
        self.address, self.again = address, again
        self.known = plan.known
        self.changed = threading.Condition()
        self.flying: set[str] = set()
        self.failures: dict[str, Failure] = {}
        self.missing: set[tuple[str, str]] = set()
        self.watched: dict[str, str] = {}
        self.trouble: GraftlineError | None = None
        self.stopped = False
        self._workers: Workers | None = None
        self._capacity: Capacity | None = None
        self._starting = threading.Lock()

    # --- workers ----------------------------------------------------------------------------------------------

    def workers(self) -> Workers:
        """The workers, started when the first stage needs them."""
        with self._starting:
            if self._workers is None:
                workers = self._workers = self._start()
                self._capacity = Capacity(workers.nodes())
            return self._workers

    def _start(self) -> Workers:
        if self.address == HERE:
            return Here(LocalBoard(self.purse, self.hear, self.asked))
        from graftline.pipelines.load_file import send_by_value
        from graftline.pipelines.ray_workers import RayWorkers

        self.watch(Event("ray", name="starting Ray"))
        send_by_value(list(self.plan.graph.stages.values()), self.plan.base)
        workers = RayWorkers(self.purse, self.hear, self.asked, self.address)
        self.watch(Event("ray", name="Ray is up"))
        return workers

    def close(self) -> None:
        """Ends what was started."""
        with self._starting:
            if self._workers is not None:
                self._workers.close()
                self._workers = None

    def cancel(self) -> None:
        """Stops what is running."""
        self.stopped = True
        if self._workers is not None:
            self._workers.cancel()

    def hear(self, told: Told) -> None:
        """Takes what a worker tells; where that cannot be kept (the disk is full), the run ends."""
        try:
            self._hear(told)
        except GraftlineError as error:
            self.trouble = self.trouble or error

    def _hear(self, told: Told) -> None:
        key = told["key"]
        if told["kind"] == "log":
            self.record.logged(key, told["line"])
            numbers = {name: value for name, value in told["line"].items() if isinstance(value, (int, float))}
            self.watch(Event("progress", key, self.record.line(key)["name"], numbers=numbers))
        elif told["kind"] == "progress":
            self.record.progressed(key, told["done"], told["total"])
            name = self.record.line(key)["name"]
            self.watch(Event("progress", key, name, told["done"], told["total"], told["numbers"]))

    def asked(self, key: str, stage: Stage, metric: str = "") -> Artefact:
        """Makes a stage for a running one, which lends what it holds while it waits; `metric`: after which it asks the
        other one whether it goes on."""
        if self._capacity is not None:
            self._capacity.wait(key)
        if metric:
            self.watched[stage.key] = metric
        try:
            plan = planned({"": stage}, self.store, self.plan.base, pins=self.plan.pins, known=self.known)
            self.record.add(plan.graph, why=f"asked for by {self.record.line(key)['name']}", asked_by=key)
            self.record.planned(plan)
            self.execute(plan)
            found = self.known.get(plan.graph, stage)
            assert found is not None
            return found
        except Stopped:
            self.failures.pop(plan.graph.fingerprint(stage), None)  # whoever asks for all of it may have it
            raise
        finally:
            self.watched.pop(stage.key, None)
            if self._capacity is not None:
                self._capacity.resume(key)

    # --- stages -----------------------------------------------------------------------------------------------

    def execute(self, plan: Plan) -> None:
        """Has everything of a plan in the store.

        Raises:
            GraftlineError: the first failure; what was running beside it is finished and kept.
        """
        graph, cached = plan.graph, {step.key for step in plan.steps if step.status == "cached"}
        for step in plan.steps:
            if step.key in cached and not step.fused:
                self._take(graph, step.stage, "cached")
        waiting = [step.stage for step in plan.steps if step.key not in cached and not step.fused]
        if not waiting:
            self._account_fused(graph, plan)
            return
        nodes = self.workers().nodes()
        for step in (*plan.steps, *plan.later):
            if step.status != "cached" and not isinstance(step.stage, View):
                refuse_unplaceable(step.stage, nodes)
        own: set[str] = set()
        wanted, error = set(graph.fingerprints.values()), None
        with self.changed:
            while waiting or own & self.flying:
                failed = (each.error() for key, each in self.failures.items() if key in wanted)
                error = error or self.trouble or next(failed, None)
                if error is None and not self.stopped:
                    try:
                        waiting = [stage for stage in waiting if not self._advance(graph, stage, own)]
                    except GraftlineError as raised:
                        error = raised
                elif not own & self.flying:
                    break
                if waiting or own & self.flying:
                    self.changed.wait(TICK)
        if error is not None:
            raise error
        self._account_fused(graph, plan)

    def _advance(self, graph: Graph, stage: Stage, own: set[str]) -> bool:
        """Takes a stage that is there, or starts it if it is ready and there is room; whether it is off the list."""
        fingerprint = graph.fingerprint(stage)
        if fingerprint in self.flying:
            return False
        if isinstance(stage, View) or self.known.get(graph, stage) is not None:
            if self.known.get(graph, stage) is None:
                return False
            self._take(graph, stage, self._status(graph, stage) if isinstance(stage, View) else "cached")
            return True
        chain = self.known.chain(graph, stage)
        needed = [*self.known.outside(graph, chain), *(base for each in chain for base in graph.bases[each.key])]
        if any(self.known.get(graph, each) is None for each in needed):
            return False
        if stage.key not in self.again and self._look(graph, stage, chain):
            self._take(graph, stage, "cached")
            return True
        if why := self.purse.spent():
            raise BudgetSpent(why, where=stage.name, do="run again with a larger budget to continue")
        assert self._capacity is not None and self._workers is not None
        needs = needs_of_chain(chain, self._capacity)
        if not self._capacity.admit(stage.key, needs):
            return False
        self.flying.add(fingerprint)
        own.add(fingerprint)
        for each in chain:
            self.record.update(each.key, status="running")
            self.watch(Event("started", each.key, each.name))
        threading.Thread(target=self._make, args=(graph, chain, needs), name=stage.name, daemon=True).start()
        return False

    def _look(self, graph: Graph, stage: Stage, chain: list[Stage]) -> bool:
        """Whether it is in the store; asked once, not each time somebody looks whether there is room for it."""
        identity = self.known.identity(graph, chain)
        assert identity is not None
        asked = (identity.fingerprint, identity.inputs)
        if asked in self.missing:
            return False
        if self.known.look(graph, stage) is not None:
            return True
        self.missing.add(asked)
        return False

    def _status(self, graph: Graph, view: View) -> str:
        return str(self.record.line(view.of.key)["status"])

    def _make(self, graph: Graph, chain: list[Stage], needs: Needs) -> None:
        """Makes a stage; runs in a thread of its own."""
        stage, workers = chain[-1], self._workers
        assert workers is not None
        artefact, failure = None, None
        try:
            work = self.order(graph, chain, needs)
            if work.ledger:
                self.record.update(stage.key, ledger=work.ledger)
            if isinstance(stage, (Mapper, Scorer)):
                began = time.time()
                artefact, failure = run_chain(
                    work,
                    lambda work, attempt, shards: workers.shards(work, needs, attempt, shards),
                    lambda work, attempt, total: workers.close_chain(work, attempt, total, began),
                )
            else:
                artefact, failure = workers.perform(work, needs)
        except BaseException as error:  # also a stage that calls sys.exit(): nobody else would see this thread end
            failure = Failure.of(error, stage.name)
        with self.changed:
            assert self._capacity is not None
            self._capacity.release(stage.key)
            try:
                if artefact is not None:
                    self.known.found[graph.fingerprint(stage)] = artefact
                    self._take(graph, stage, "ran")
                    self._fused_took(chain, artefact, "ran")
                elif failure is not None and not self.stopped:
                    self._failed(graph, chain, failure)
            except Exception as error:  # the record cannot be written, or the watch raises
                self.failures[graph.fingerprint(stage)] = failure or Failure.of(error, stage.name)
            finally:
                self.flying.discard(graph.fingerprint(stage))
                self.changed.notify_all()

    def order(self, graph: Graph, chain: Sequence[Stage], needs: Needs) -> Work:
        """The work order of a chain whose inputs are known."""
        stage, workers = chain[-1], self._workers
        assert workers is not None
        inputs: dict[str, Artefact] = {}
        read = self.known.outside(graph, list(chain))
        for each in [*read, *(base for one in chain for base in graph.bases[one.key])]:
            opened = self.known.get(graph, each)
            assert opened is not None
            inputs[each.key] = opened
        identity = self.known.identity(graph, list(chain))
        assert identity is not None
        generation = self.known.artefacts.generation(identity) + (stage.key in self.again)
        ledger = ""
        if isinstance(stage, Rounds) or getattr(stage, "calls_model", False):
            digests = {each.key: inputs[each.key].digest for each in graph.reads[stage.key] if each.key in inputs}
            named = specification(stage, graph.fingerprints, digests, self.plan.pins)
            if identity.source:  # another code of one's own asks again
                named = digest([named, identity.source])
            ledger = f"ledger/{type(stage).__name__}-{named[:16]}{f'-{generation}' if generation else ''}"
        return Work(
            stage=stage,
            chain=tuple(chain),
            fingerprints={each.key: graph.fingerprint(each) for each in chain},
            identity=identity,
            inputs=inputs,
            store=self.store,
            base=self.plan.base,
            resources=needs.task,
            workers=needs.others[0] if needs.others else needs.task,
            board=workers.board,
            ledger=ledger,
            generation=generation,
            pinned=dict(self.plan.pins.names),
            on_ray=workers.on_ray,
            watched=self.watched.get(stage.key, ""),
        )

    # --- telling ----------------------------------------------------------------------------------------------

    def _take(self, graph: Graph, stage: Stage, status: str) -> None:
        if self.record.line(stage.key)["status"] in ("ran", "cached"):
            return  # another stage asked for it before
        artefact = self.known.get(graph, stage)
        assert artefact is not None
        self.record.took(stage, artefact, status)
        if not isinstance(stage, View):
            self.watch(Event("done" if status == "ran" else status, stage.key, stage.name, *_amount(artefact)))

    def _fused_took(self, chain: Sequence[Stage], artefact: Artefact, status: str) -> None:
        for each, told in zip(chain, artefact.manifest["chain"], strict=False):
            self.record.took(each, artefact, status, f"ran in the tasks of {chain[-1].name}", told["rows"])
            self.watch(Event("done" if status == "ran" else status, each.key, each.name, told["rows"]["kept"]))

    def _account_fused(self, graph: Graph, plan: Plan) -> None:
        """Lines of stages that ran in the tasks of one that was in the store already."""
        for step in reversed(plan.steps):
            if step.fused and self.record.line(step.key)["status"] == "pending":
                reader, position = graph.fused[step.key], -1
                while reader.key in graph.fused and self.known.get(graph, reader) is None:
                    reader, position = graph.fused[reader.key], position - 1
                artefact = self.known.get(graph, reader)
                accounts = artefact.manifest["chain"] if artefact is not None else []
                if artefact is not None and len(accounts) >= -position:
                    why = f"ran in the tasks of {reader.name}"
                    self.record.took(step.stage, artefact, "cached", why, accounts[position]["rows"])
                else:
                    self.record.update(step.key, status="cached", why=f"not needed: {reader.name} is there")
                self.watch(Event("cached", step.key, step.name))

    def _failed(self, graph: Graph, chain: Sequence[Stage], failure: Failure) -> None:
        stage = chain[-1]
        if failure.traceback and failure.type in ("RunError", "WorldError", "WorkerDied", "ContractBroken"):
            failure = failure.told(self.record.traceback(stage, failure.traceback))
        self.failures[graph.fingerprint(stage)] = failure
        status = "stopped" if failure.type == "Stopped" else "failed"
        for each in chain:
            self.record.update(each.key, status=status, why=failure.what)
            self.watch(Event(status, each.key, each.name))


def needs_of_chain(chain: Sequence[Stage], capacity: Capacity) -> Needs:
    """What the tasks of a chain hold: of each resource the most that one of its stages asks for."""
    needs = needs_of(chain[-1], capacity.nodes)
    for stage in chain[:-1]:
        other = needs_of(stage, capacity.nodes).task
        most = {
            name: max(getattr(needs.task, name) or 0, getattr(other, name) or 0) or None
            for name in ("cpus", "memory", "threads")
        }
        needs = Needs(replace_resources(needs.task, **most, gpus=max(needs.task.gpus, other.gpus)), needs.others)
    return needs


def _amount(artefact: Artefact) -> tuple[int, int]:
    return (artefact.count, artefact.count) if artefact.kind == "rows" else (0, 0)
