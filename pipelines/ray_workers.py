"""Stages on Ray: a cluster joined or started, tasks, one Ray Data job for each chain, the board as an actor."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from graftline.pipelines.board import BoardActor, RayBoard, Told
from graftline.pipelines.budget import Purse
from graftline.pipelines.chains import Chain, Shard, Summary, close_chain
from graftline.pipelines.context import limit_libraries
from graftline.pipelines.failures import Failure
from graftline.pipelines.perform import perform
from graftline.pipelines.placing import Needs, Node, this_machine
from graftline.pipelines.work import Work
from graftline.pipelines.workers import Result
from graftline.stages.errors import WorkerDied, WorldError
from graftline.stages.stage import Resources

if TYPE_CHECKING:
    import pyarrow as pa

RETRIES = 2
"""How often a task whose worker died is tried again; what it committed or wrote to its ledger is found then."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayWorkers:
    """Ray as a place for stages to run.

    Args:
        purse: the run's budget.
        hear: takes what workers tell.
        make: makes a stage (pickled) for the stage of a key; told which metric of it is watched ("": none).
        address: a cluster to join (None: RAY_ADDRESS, else a local one of its own, which ends with the run). A
            process that is connected to a cluster already stays with it.
    """

    on_ray = True

    def __init__(
        self,
        purse: Purse,
        hear: Callable[[Told], None],
        make: Callable[[str, Any, str], Any],
        address: str | None = None,
    ) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self.purse, self.hear, self.make = purse, hear, make
        self.mine = not ray.is_initialized()
        if self.mine:
            connect(address or os.environ.get("RAY_ADDRESS"))
        self.driver = ray.get_runtime_context().get_node_id()
        board: Any = ray.remote(BoardActor)
        placed = board.options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=_on_node(self.driver))
        self.actor: Any = placed.remote(purse)
        self.board = RayBoard(self.actor)
        self._running: set[Any] = set()
        self._cancelled = False
        self._closed = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="graftline-board", daemon=True)
        self._listener.start()

    def nodes(self) -> list[Node]:
        import ray

        return [
            Node(
                float(node["Resources"].get("CPU", 0)),
                float(node["Resources"].get("GPU", 0)),
                float(node["Resources"].get("memory", 0)),
                driver=node["NodeID"] == self.driver,
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def perform(self, work: Work, needs: Needs) -> Result:
        return self._call(perform, work, needs.task, needs.on_driver_node)

    def close_chain(self, work: Work, attempt: str, total: Summary, began: float) -> Result:
        one = Resources(cpus=min(1.0, work.resources.cpus or 0.0))
        return self._call(close_chain, work, one, False, attempt, total, began)

    def _call(
        self, function: Callable[..., Result], work: Work, given: Resources, on_driver_node: bool, *more: Any
    ) -> Result:
        import ray

        task = ray.remote(function).options(
            name=work.stage.name,
            num_cpus=given.cpus,
            num_gpus=given.gpus,
            memory=given.memory,
            max_retries=RETRIES,
            retry_exceptions=False,
            scheduling_strategy=_on_node(self.driver) if on_driver_node else None,
        )
        reference = task.remote(work, *more)
        self._running.add(reference)
        try:
            result: Result = ray.get(reference)
        except ray.exceptions.RayError as error:
            return None, died(error, work.stage.name)
        finally:
            self._running.discard(reference)
        return result

    def shards(self, work: Work, needs: Needs, attempt: str, shards: Sequence[Shard]) -> Iterator[Summary]:
        import ray
        from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        items = ray.data.from_items(
            [{"shard": json.dumps(asdict(shard))} for shard in shards], override_num_blocks=len(shards)
        )
        given: dict[str, Any] = {
            "num_cpus": needs.task.cpus,
            "num_gpus": needs.task.gpus or None,
            "memory": needs.task.memory,
        }
        if getattr(work.stage, "calls_model", False):  # engines are opened once an actor
            engines = min(len(shards), max(1, int(getattr(work.stage, "concurrency", 1))))
            given |= {"fn_constructor_args": (work, attempt), "compute": ActorPoolStrategy(size=engines)}
            given |= {"max_restarts": RETRIES, "max_task_retries": RETRIES}  # Ray Data's own are endless
            function: Any = Sharded
        else:
            given |= {"fn_args": (work, attempt), "compute": TaskPoolStrategy(), "max_retries": RETRIES}
            function = run_shard
        # Ray 2.64 is to replace how retries are given; until then it warns each time.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        done = items.map_batches(function, batch_size=1, batch_format="pyarrow", **given)
        try:
            for row in done.iter_rows():
                if self._cancelled:
                    return
                yield Summary.from_dict(json.loads(row["summary"]))
        except ray.exceptions.RayError as error:
            yield Summary(0, failure=died(error, work.stage.name))

    def _listen(self) -> None:
        """Hears what workers tell, until the run is over; has stages made that they ask for."""
        import ray

        while not self._closed.is_set():
            try:
                told = ray.get(self.actor.take.remote(0.5))
            except (ray.exceptions.RayError, ConnectionError, ValueError):  # the cluster is gone, or going
                return
            for each in told:
                if each["kind"] == "run":
                    threading.Thread(target=self._make, args=(each,), daemon=True).start()
                else:
                    if each["kind"] == "paid":
                        self.purse.pay(each["tokens"], each["money"])
                    self.hear(each)

    def _make(self, asked: Told) -> None:
        from ray import cloudpickle

        try:
            artefact, failure = self.make(asked["key"], cloudpickle.loads(asked["stage"]), asked["metric"]), None
        except Exception as error:
            artefact, failure = None, Failure.of(error, "")
        self.actor.reply.remote(asked["number"], artefact, failure)

    def cancel(self) -> None:
        import ray

        self._cancelled = True
        for reference in list(self._running):
            ray.cancel(reference, force=True)

    def close(self) -> None:
        import ray

        self._closed.set()
        self._listener.join(timeout=5)
        if self.mine:
            ray.shutdown()
        else:
            ray.kill(self.actor)


class Sharded:
    """A chain in an actor of Ray Data."""

    def __init__(self, work: Work, attempt: str) -> None:
        self.chain = Chain(work, attempt)

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        summaries = [self.chain(shard_of(each)) for each in batch["shard"].to_pylist()]
        return pa.table({"summary": [json.dumps(summary.to_dict()) for summary in summaries]})


def run_shard(batch: pa.Table, work: Work, attempt: str) -> pa.Table:
    """A chain in a task of Ray Data."""
    sharded = Sharded(work, attempt)
    try:
        return sharded(batch)
    finally:
        sharded.chain.close()


def shard_of(text: str) -> Shard:
    """A shard as it came through Ray Data."""
    value = json.loads(text)
    return Shard(**{**value, "known": tuple(value["known"])})


def died(error: Exception, stage: str) -> Failure:
    """The failure behind an error of Ray's own."""
    import ray

    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    kind: type[WorldError] = WorldError
    do = "look at the cluster, and run again to continue"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        text, do = "Ray ended it for want of memory", "give it less to do at once, or a larger machine"
    elif isinstance(error, ray.exceptions.TaskCancelledError):
        text, do = "it was cancelled", "run again to continue"
    elif not isinstance(error, ray.exceptions.RayTaskError):
        kind = WorkerDied
        text = f"its worker died, and so did those after it: {text}"
    return Failure(kind.__name__, text, stage, do, str(error))


def connect(address: str | None) -> None:
    """Joins a cluster, or starts a local one with a token of its own (Ray 2.60 asks for one, and would otherwise leave
    it in the user's home)."""
    import ray

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address and address != "local":
        ray.init(address=address, **common)
        return
    if os.environ.get("RAY_AUTH_MODE") is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    machine = this_machine()
    limit_libraries()  # Ray's workers inherit it
    ray.init(address="local", num_cpus=int(machine.cpus), include_dashboard=False, **common)


def _on_node(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)
