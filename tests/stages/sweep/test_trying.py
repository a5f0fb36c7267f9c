"""Trials that are known before the first one: in their order; one's failure is its own, the world's is everybody's."""

from __future__ import annotations

import math
import threading
import time
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as fs
import pytest

from graftline.stages import sweep
from graftline.stages.artefact import Artefact
from graftline.stages.errors import BudgetSpent, InvalidField, RunError, Stopped, StoreFailed
from graftline.stages.sweep.trying import best_so_far, one, try_all


class Bench:
    """A context whose stages are made at once: what each measures is a function of its rank."""

    def __init__(self, measure: Any) -> None:
        self.measure, self.shown, self.lock, self.now, self.most = measure, [], threading.Lock(), 0, 0

    def run(self, stage: Any) -> Artefact:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            metrics = self.measure(stage.knob.rank)
        finally:
            with self.lock:
                self.now -= 1
        return Artefact(
            {"fingerprint": f"{stage.knob.rank:02}", "metrics": metrics, "files": {}, "seconds": 1.0},
            fs.LocalFileSystem(), "",
        )  # fmt: skip

    def progress(self, done: int, total: int, **numbers: float) -> None:
        self.shown.append((done, total, numbers))


def ranks(pipe: Any, *values: int, **fields: Any) -> sweep.Sweep:
    return sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(*values)}, **fields)


def tried(stage: sweep.Sweep, measure: Any) -> tuple[list[Any], Bench]:
    bench = Bench(measure)
    return try_all(stage, [stage.trial(point) for point in stage.points()], bench), bench


def test_outcomes_stand_in_the_order_of_their_trials_whichever_ends_first(pipe: Any) -> None:
    def measure(rank: int) -> dict[str, float]:
        time.sleep(0.002 * (10 - rank))
        return {"eval_loss": 10.0 - rank}

    found, bench = tried(ranks(pipe, 1, 5, 9), measure)
    assert [each.values for each in found] == [{"knob.rank": 1}, {"knob.rank": 5}, {"knob.rank": 9}]
    assert [each.value for each in found] == [9.0, 5.0, 1.0]
    assert [(done, total) for done, total, _ in bench.shown] == [(1, 3), (2, 3), (3, 3)]
    assert bench.shown[-1][2] == {"eval_loss": 1.0}, "progress has the best so far"


def test_a_trials_own_failure_is_an_outcome_and_the_others_go_on(pipe: Any) -> None:
    def measure(rank: int) -> dict[str, float]:
        if rank == 2:
            raise RunError("the loss is nan at step 3", where="Fit")
        return {"eval_loss": float(rank)}

    found, _ = tried(ranks(pipe, 1, 2, 3), measure)
    assert [each.status for each in found] == ["full", "failed", "full"]
    assert found[1].value is None and found[1].artefact is None and "nan at step 3" in found[1].why


@pytest.mark.parametrize(
    "error",
    [
        StoreFailed("the disk is full", where="store"), BudgetSpent("the budget is spent", where="Fit"),
        Stopped("it was ended", where="Fit"), OSError(28, "no space"),
    ],
)  # fmt: skip
def test_what_is_no_trials_own_ends_the_sweep(pipe: Any, error: Exception) -> None:
    asked = []

    def measure(rank: int) -> dict[str, float]:
        asked.append(rank)
        if rank == 1:
            raise error
        return {"eval_loss": 1.0}

    with pytest.raises(type(error)):
        tried(ranks(pipe, *range(1, 9), at_once=1), measure)
    assert len(asked) <= 2, "what had not begun was not begun any more"


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (3, 3)])
def test_no_more_at_once_than_asked_for(pipe: Any, at_once: int, most: int) -> None:
    def measure(rank: int) -> dict[str, float]:
        time.sleep(0.02)
        return {"eval_loss": 1.0}

    _, bench = tried(ranks(pipe, *range(1, 7), at_once=at_once), measure)
    assert bench.most == most


def test_a_metric_of_a_report_is_read_there_and_the_trial_is_what_is_kept(pipe: Any) -> None:
    stage = ranks(pipe, 4, metric=pipe.report.metric("right/x"), mode="max")
    (point,) = stage.points()
    trial, asked = stage.trial(point), []

    def run(wanted: Any) -> Any:
        asked.append(wanted)
        metrics = {"right/x": 0.25} if wanted == trial.measured else {"eval_loss": 3.0}
        return SimpleNamespace(metrics=metrics, wanted=wanted, lines=lambda name: [])

    outcome = one(stage, trial, run)
    assert asked == [trial.measured, trial.stage]
    assert outcome.value == 0.25 and outcome.artefact.wanted == trial.stage
    with pytest.raises(InvalidField, match="the trials have no 'right/x'"):
        one(stage, trial, lambda wanted: SimpleNamespace(metrics={"eval_loss": 3.0}, lines=lambda name: []))


def test_a_trials_curve_is_what_it_logged_of_the_metric(pipe: Any) -> None:
    stage = ranks(pipe, 4)
    (point,) = stage.points()
    logged = [{"step": 1, "loss": 9.0}, {"step": 2, "eval_loss": 4.0}, {"step": 5, "loss": 1.0, "eval_loss": 2.0}]
    logged += [{"step": 6, "eval_loss": None}]
    made = SimpleNamespace(metrics={"eval_loss": 2.0}, lines=lambda name: logged if name == "log.jsonl" else [])
    *curve, (step, value) = one(stage, stage.trial(point), lambda wanted: made).curve
    assert curve == [(2, 4.0), (5, 2.0)] and step == 6 and math.isnan(value), "the store has null for NaN"


def test_the_best_so_far_is_of_full_trials_alone(pipe: Any) -> None:
    def outcomes(*values: Any) -> list[Any]:
        return [SimpleNamespace(status=status, value=value) for status, value in values]

    found = outcomes(("full", 0.5), ("stopped", 0.1), ("full", None), ("failed", None), ("full", 0.7))
    assert best_so_far(ranks(pipe, 4), found) == {"eval_loss": 0.5}
    assert best_so_far(ranks(pipe, 4, mode="max"), found) == {"eval_loss": 0.7}
    assert best_so_far(ranks(pipe, 4), outcomes(("stopped", 0.1))) == {}
