"""The slot of what ends bad trials early: which trials it takes, and what an own one must say."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages import Llm, sweep, train
from graftline.stages.errors import InvalidField
from graftline.stages.sweep.scheduler import Scheduler


class Median(Scheduler):
    """A scheduler of one's own: Tune's median stopping rule."""

    origin = "a test"

    def for_tune(self) -> Any:
        from ray.tune.schedulers import MedianStoppingRule

        return MedianStoppingRule(time_attr="step")


@pytest.fixture
def tuned(pipe: Any) -> train.Train:
    """A training that can be ended early."""
    return train.Train(model=Llm("tiny"), rows=pipe.split.train, held_out=pipe.split.dev)


def test_ones_own_is_held_to_the_same(pipe: Any, tuned: train.Train) -> None:
    over = {"adapter.rank": sweep.grid(4, 8)}
    found = sweep.Sweep(stage=tuned, over=over, scheduler=Median())
    assert "Median ends trials by which of them were faster" in found.not_reproducible()
    assert found != sweep.Sweep(stage=tuned, over=over)
    with pytest.raises(InvalidField, match=r"Sweep\.scheduler: a trial of 2 workers"):
        sweep.Sweep(stage=tuned.replace("workers", 2), over=over, scheduler=Median())


@pytest.mark.parametrize(
    ("changes", "metric", "says"),
    [
        ({}, "eval_loss", ""),
        ({"eval_every": 5}, "eval_loss", ""),
        ({"eval_every": 0}, "eval_loss", "is evaluated at its end alone"),
        ({"workers": 3}, "eval_loss", "a trial of 3 workers cannot be ended early"),
    ],
)
def test_which_trials_it_takes(tuned: train.Train, changes: Any, metric: Any, says: str) -> None:
    stage = tuned
    for field, value in changes.items():
        stage = stage.replace(field, value)
    if not says:
        Median().check_trials(stage, metric)
        return
    with pytest.raises(InvalidField, match=says):
        Median().check_trials(stage, metric)


def test_a_report_comes_too_late(pipe: Any) -> None:
    with pytest.raises(InvalidField, match="a report is there only once a trial has ended"):
        Median().check_trials(pipe.tuned, pipe.report.metric("right/x"))


def test_what_an_own_scheduler_must_say_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"Scheduler\.for_tune"):
        Scheduler().for_tune()
    with pytest.raises(NotImplementedError, match=r"Scheduler\.rungs"):
        Scheduler().rungs()
    with pytest.raises(NotImplementedError, match=r"Scheduler\.go_on"):
        Scheduler().go_on([0.5])
