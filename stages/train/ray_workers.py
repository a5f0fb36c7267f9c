"""The same job on several workers of Ray Train."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import GraftlineError, RequestError, RunError, WorkerDied, WorldError
from graftline.stages.rows import digest

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.stage import Context, Resources
    from graftline.stages.train.worker import Job

POLL_SECONDS = 0.5
ENVIRONMENT = {
    # Ray polls its workers every 2 s by default; a report is committed, and a death seen, at a poll.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Training has no Ray Dataset and no dashboard to feed.
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def work_on_ray(
    job: Job,
    rows: pa.Table,
    held_out: pa.Table | None,
    context: Context,
    out: Path,
    workers: int,
    each: Resources,
    retries: int,
) -> dict[str, Any]:
    """Train on several workers, which Ray restarts from the latest checkpoint when one dies.

    Args:
        out: where the first worker exports to; it and `context.scratch` must be reachable from every worker's node.
        workers: how many.
        each: what a worker asks of the cluster.
        retries: how often the workers are restarted.

    Raises:
        WorkerDied: workers died more often than that.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    storage = context.scratch / "ray-train"
    # Resume is by name and storage path, so the name says whose checkpoints these are.
    name = f"train-{digest(str(context.scratch))[:12]}"
    numbers = Queue(actor_options={"num_cpus": 0})
    resources = {"CPU": each.cpus or 0.0} | ({"memory": each.memory} if each.memory else {})
    trainer = TorchTrainer(
        _in_worker,
        train_loop_config={
            "job": job,
            "rows": ray.put(rows),
            "held_out": None if held_out is None else ray.put(held_out),
            "numbers": numbers,
            "out": str(out),
        },
        torch_config=TorchConfig(backend="nccl" if each.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(each.gpus),
            resources_per_worker=resources | ({"GPU": each.gpus} if each.gpus else {}),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=retries),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        with _environment(ENVIRONMENT):
            answer = _fit(trainer.fit, numbers, context)
    except TrainingFailedError as error:
        raise WorkerDied(
            f"training failed {retries + 1} times: {_root(error)}",
            where=f"{workers} workers",
            do="look at the workers' logs; running again continues from the last checkpoint",
        ) from error
    finally:
        numbers.shutdown()
    if isinstance(answer, GraftlineError):
        raise answer
    metrics: dict[str, Any] = answer
    return metrics


def _in_worker(told: dict[str, Any]) -> Any:
    """Runs in each worker. What would fail the same way each time comes back as a value, since Ray retries what is
    raised."""
    import ray

    from graftline.stages.train.collectives import ProcessGroup
    from graftline.stages.train.reporting import RayReporter
    from graftline.stages.train.worker import work

    ranks = ProcessGroup()
    numbers = told["numbers"]
    reporter = RayReporter(
        ranks.rank,
        log=lambda step, **values: numbers.put(("log", (step,), values)),
        progress=lambda done, total, **values: numbers.put(("progress", (done, total), values)),
    )
    held_out = None if told["held_out"] is None else ray.get(told["held_out"])
    try:
        return work(told["job"], ray.get(told["rows"]), held_out, reporter, ranks, Path(told["out"]))
    except (RunError, RequestError, WorldError) as error:  # the same on every worker, or the next time
        return error


def _fit(fit: Callable[[], Any], numbers: Any, context: Context) -> Any:
    """Run `fit` in a thread, and pass on the numbers that rank 0 says meanwhile."""
    from ray.util.queue import Empty

    ended: dict[str, Any] = {}

    def run() -> None:
        try:
            ended["answer"] = fit().return_value
        except BaseException as error:
            ended["error"] = error

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    said: set[Any] = set()
    while True:
        alive = thread.is_alive()
        try:
            kind, position, values = numbers.get(timeout=POLL_SECONDS if alive else 0.01)
        except Empty:
            if not alive:
                break
            continue
        if kind == "progress":
            context.progress(*position, **values)
        elif (position, *values) not in said:  # a restarted worker says its history again
            said.add((position, *values))
            context.log(*position, **values)
    if "error" in ended:
        raise ended["error"]
    return ended["answer"]


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that Ray Train reads where `fit` is called, unless the user has set them."""
    own = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)


def _root(error: BaseException) -> str:
    """The last line of what went wrong in a worker."""
    failures = getattr(error, "worker_failures", None) or {}
    cause = next(iter(failures.values()), error)
    lines = str(cause).strip().splitlines()
    return lines[-1] if lines else type(cause).__name__
