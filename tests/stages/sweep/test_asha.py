"""ASHA: what it has Ray Tune decide, evaluation by evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from graftline.stages import sweep
from graftline.stages.errors import InvalidField


class Watched:
    """Ray Tune's scheduler, told of trials that were only thought up."""

    def __init__(self, asha: sweep.Asha, mode: str = "min") -> None:
        self.scheduler = asha.for_tune()
        assert self.scheduler.set_search_properties("eval_loss", mode)
        self.trials: dict[str, Any] = {}

    def goes_on(self, name: str, step: int, loss: float) -> bool:
        """Whether a trial goes on after an evaluation."""
        if name not in self.trials:
            self.trials[name] = SimpleNamespace(trial_id=name)
            self.scheduler.on_trial_add(None, self.trials[name])
        told = self.scheduler.on_trial_result(None, self.trials[name], {"step": step, "eval_loss": loss})
        return bool(told == TrialScheduler.CONTINUE)


def test_every_trial_has_its_grace() -> None:
    tune = Watched(sweep.Asha(grace=10, reduction=2.0))
    assert tune.goes_on("good", 10, 0.1)
    assert all(tune.goes_on("bad", step, 9.0) for step in range(1, 10)), "it is bad, and has its grace"
    assert not tune.goes_on("bad", 10, 9.0)


def test_at_each_rung_the_best_share_goes_on() -> None:
    """At grace, grace·reduction, grace·reduction², … : trials are compared with those that came before them."""
    tune = Watched(sweep.Asha(grace=2, reduction=4.0))
    losses = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert [tune.goes_on(str(loss), 2, loss) for loss in losses] == [True] + [False] * 7
    assert tune.goes_on("late and best", 2, 0.05), "it waits for nobody, and later ones may still do better"
    assert tune.goes_on("0.1", 7, 5.0), "between two rungs nothing is decided"
    assert tune.goes_on("0.1", 8, 0.09) and not tune.goes_on("late and best", 8, 0.2), "the next rung is at 2·4"


def test_a_lower_reduction_keeps_more() -> None:
    losses = [0.1 * place for place in range(1, 9)]

    def kept(reduction: float) -> int:
        tune = Watched(sweep.Asha(grace=1, reduction=reduction))
        return sum([tune.goes_on(str(loss), 1, loss) for loss in reversed(losses)])

    assert kept(8.0) == kept(2.0) == 8, "each is the best so far: nobody knows of better ones yet"
    ordered = {reduction: Watched(sweep.Asha(grace=1, reduction=reduction)) for reduction in (1.25, 2.0, 8.0)}
    found = {each: sum([tune.goes_on(str(place), 1, (place * 3) % 8) for place in range(8)]) for each, tune in
             ordered.items()}  # fmt: skip
    assert found[1.25] > found[2.0] > found[8.0] >= 1


def test_the_largest_wins_where_the_sweep_says_so() -> None:
    tune = Watched(sweep.Asha(grace=1, reduction=2.0), mode="max")
    assert tune.goes_on("good", 1, 0.9) and not tune.goes_on("bad", 1, 0.1)


def test_a_trials_length_is_its_own_to_say() -> None:
    tune = Watched(sweep.Asha(grace=1))
    assert tune.goes_on("long", 10**6, 0.5), "Tune would end it at a length of its own"


@pytest.mark.parametrize("fields", [{"grace": 0}, {"grace": 1, "reduction": 1.0}, {"grace": 1, "reduction": 0.5}, {}])
def test_what_would_end_nothing_or_everything_is_refused(fields: Any) -> None:
    with pytest.raises(InvalidField, match="Asha"):
        sweep.Asha(**fields)


def test_another_setting_is_another_sweep(pipe: Any) -> None:
    def asha(**fields: Any) -> Any:
        return sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(4)}, scheduler=sweep.Asha(**fields))

    assert asha(grace=2) == asha(grace=2, reduction=4.0) != asha(grace=2, reduction=3.0)
    assert asha(grace=2) != asha(grace=3)
