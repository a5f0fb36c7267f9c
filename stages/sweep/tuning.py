"""Trials that Ray Tune searches and schedules.

Tune's own trials are proxies that hold no CPU: each asks the sweep for its point, waits, and passes on what the trial
logs. The trial itself is made by the run like any other stage (in the store, once, where there is room), so that Tune's
state may be thrown away. Where Tune ends a proxy, the trial is ended at the evaluation it has just made.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import CannotPlace, Stopped
from graftline.stages.sweep.outcome import Outcome
from graftline.stages.sweep.points import Point, written
from graftline.stages.sweep.proxies import Desk, Ended, Trouble, proxy
from graftline.stages.sweep.rungs import by_rungs
from graftline.stages.sweep.trying import best_so_far, one

if TYPE_CHECKING:
    from graftline.stages.stage import Context, Stage
    from graftline.stages.sweep.sweep import Sweep, Trial

POINT = "point"
"""The configuration's entry with the place of a point that is known before."""
WAIT = 0.5


def tune_all(sweep: Sweep, context: Context) -> list[Outcome]:
    """What came of each trial, in the order in which Tune began them (of known points, in theirs).

    Raises:
        CannotPlace: there is no Ray to run Tune on.
    """
    import ray

    if not ray.is_initialized():
        raise CannotPlace(
            "Ray Tune searches and schedules, and there is no Ray here",
            where=sweep.name,
            do="run it on Ray, or use a grid or random search without a scheduler",
        )
    points = sweep.points()
    if sweep.scheduler is None or not sweep.scheduler.together:
        return experiment(sweep, context, points)
    return by_rungs(
        sweep, len(points), lambda places, until: experiment(sweep, context, [points[each] for each in places], until)
    )


def experiment(sweep: Sweep, context: Context, points: Sequence[Point], until: int | None = None) -> list[Outcome]:
    """One experiment of Tune's; `until`: the step at which trials are ended."""
    import ray

    most = at_once(sweep)
    desk: Any = ray.remote(Desk).options(num_cpus=0, max_concurrency=4 * most + 16).remote()
    try:
        return Conversation(sweep, context, desk, points, most, until).held()
    finally:
        ray.kill(desk)


def at_once(sweep: Sweep) -> int:
    """Trials at once: Optuna learns from those before; a scheduler compares those that run side by side."""
    import ray

    if sweep.at_once is not None:
        return sweep.at_once
    return 1 if sweep.search == "optuna" else room(sweep.stage, [each for each in ray.nodes() if each["Alive"]])


def room(stage: Stage, nodes: Sequence[Mapping[str, Any]]) -> int:
    """How many trials such nodes have room for, at least one."""
    task = stage.footprint()[0]
    asked = {"CPU": task.cpus, "GPU": task.gpus or None, "memory": task.memory}
    found = 0
    for node in nodes:
        shares = [node["Resources"].get(kind, 0.0) // value for kind, value in asked.items() if value]
        found += int(min(shares)) if shares and task.cpus is not None else min(1, int(min(shares, default=1)))
    return max(1, found)


class Conversation:
    """The sweep's side of one Tune experiment.

    Args:
        sweep: the sweep.
        context: what it has trials made by.
        desk: the actor between it and the proxies.
        points: those that are known before; empty where Tune searches.
        most: trials at once.
        until: the step at which trials are ended (None: at their ends).
    """

    def __init__(
        self, sweep: Sweep, context: Context, desk: Any, points: Sequence[Point], most: int, until: int | None = None
    ) -> None:
        self.until = until
        self.sweep, self.context, self.desk, self.points, self.most = sweep, context, desk, points, most
        self.total = len(points) or sweep.trials or 1
        self.outcomes: dict[str, tuple[int, Point, Outcome]] = {}
        self.problem: BaseException | None = None
        self.over = threading.Event()

    def held(self) -> list[Outcome]:
        """Runs the experiment."""
        import ray

        with ThreadPoolExecutor(self.most) as pool:
            listener = threading.Thread(target=self._listen, args=(pool,), name="graftline-tune", daemon=True)
            listener.start()
            try:
                self._fit()
            finally:
                self.over.set()
                listener.join()
                ray.get(self.desk.close.remote())
        if self.problem is not None:
            raise self.problem
        found: dict[str, Outcome] = {}
        for _, point, outcome in sorted(self.outcomes.values(), key=lambda each: each[0]):
            found.setdefault(written(point), outcome)  # Optuna may ask for a point twice
        return list(found.values())

    def _fit(self) -> None:
        import os

        from ray import tune

        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        sweep = self.sweep
        search: Any = None
        if sweep.search == "optuna":
            from ray.tune.search.optuna import OptunaSearch

            space = {str(place): field.domain.for_tune() for place, field in enumerate(sweep.fields)}
            search = OptunaSearch(seed=sweep.seed)
        else:
            space = {POINT: tune.grid_search(list(range(len(self.points))))}
        with tempfile.TemporaryDirectory(prefix="graftline-tune-", ignore_cleanup_errors=True) as folder:
            tune.Tuner(
                # No CPU: a proxy waits, and the trial itself may need all there are.
                tune.with_resources(
                    tune.with_parameters(proxy, desk=self.desk), tune.PlacementGroupFactory([{"memory": 1}])
                ),
                param_space=space,
                tune_config=tune.TuneConfig(
                    metric=sweep.metric_name,
                    mode=sweep.mode,
                    num_samples=1 if search is None else self.total,
                    search_alg=search,
                    scheduler=None if sweep.scheduler is None else sweep.scheduler.for_tune(),
                    max_concurrent_trials=self.most,
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=folder,
                    verbose=0,
                    callbacks=[Ended(self.desk)],
                    stop=Trouble(self.desk, self.until),
                ),
            ).fit()

    # --- proxies' requests ------------------------------------------------------------------------------------

    def _listen(self, pool: ThreadPoolExecutor) -> None:
        """Takes what proxies ask for, until the experiment is over."""
        import ray

        asked: list[Future[None]] = []
        while not self.over.is_set():
            request = ray.get(self.desk.next_request.remote(WAIT))
            if request is not None:
                trial_id, config = request
                asked.append(pool.submit(self._answer, trial_id, len(asked), config))

    def _answer(self, trial_id: str, number: int, config: Mapping[str, Any]) -> None:
        """Has one trial made; tells its proxy of it."""
        import ray

        sweep = self.sweep
        try:
            if POINT in config:
                number = int(config[POINT])
                point = self.points[number]
            else:
                point = tuple(field.domain.from_tune(config[str(at)]) for at, field in enumerate(sweep.fields))
            outcome = self._tried(trial_id, sweep.trial(point))
            self.outcomes[trial_id] = (number, point, outcome)
            done = [each for _, _, each in self.outcomes.values()]
            self.context.progress(len(done), self.total, **best_so_far(sweep, done))
            last = {sweep.metric_name: outcome.value, "step": outcome.steps} if outcome.status == "full" else {}
            ray.get(self.desk.tell.remote(trial_id, last if outcome.value is not None else {}, True))
        except BaseException as error:  # no trial's own: it ends the sweep
            self.problem = self.problem or error
            ray.get(self.desk.fail.remote(trial_id))

    def _tried(self, trial_id: str, trial: Trial) -> Outcome:
        import ray

        scheduler = self.sweep.scheduler
        if scheduler is None or (scheduler.together and self.until is None):
            return one(self.sweep, trial, self.context.run)
        metric = self.sweep.metric_name
        seen: list[tuple[int, float]] = []

        def goes_on(step: int, value: float) -> bool:
            seen.append((step, value))
            worst = math.inf if self.sweep.mode == "min" else -math.inf
            told = {metric: value if math.isfinite(value) else worst, "step": step}  # Tune lets a NaN go on
            return bool(ray.get(self.desk.tell.remote(trial_id, told, False)))

        try:
            outcome = one(self.sweep, trial, lambda stage: self.context.watch(stage, metric, goes_on))
            if not seen:  # it was in the store: the others are compared to it
                all(goes_on(step, value) for step, value in outcome.curve)
            return outcome if outcome.curve else replace(outcome, curve=tuple(seen))
        except Stopped as error:
            last = seen[-1][1] if seen and math.isfinite(seen[-1][1]) else None
            return Outcome(trial.values, "stopped", last, why=error.what, curve=tuple(seen))
