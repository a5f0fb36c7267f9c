"""Trials run to a rung before any goes on, on trials whose every evaluation is written down."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from graftline.stages import sweep
from graftline.stages.sweep.outcome import Outcome
from graftline.stages.sweep.rungs import by_rungs

NAN = float("nan")
ENDS = 8


class Written:
    """Trials with a loss after each step; None: it fails there. `stored` ones are there, whole."""

    def __init__(self, *losses: Sequence[float | None], stored: Sequence[int] = (), seed: int = 0) -> None:
        self.losses, self.stored, self.order = losses, stored, random.Random(seed)
        self.asked: list[tuple[int | None, list[int]]] = []

    def __call__(self, places: Sequence[int], until: int | None) -> list[Outcome]:
        self.asked.append((until, list(places)))
        found = {place: self.one(place, until) for place in self.order.sample(places, len(places))}
        return [found[place] for place in places]

    def one(self, place: int, until: int | None) -> Outcome:
        curve: list[tuple[int, float]] = []
        for step, loss in enumerate(self.losses[place], 1):
            if loss is None:
                return Outcome({"place": place}, "failed", why=f"diverged at {step}")
            curve.append((step, loss))
            if until is not None and step >= until and place not in self.stored:
                known = None if loss != loss else loss
                return Outcome({"place": place}, "stopped", known, why=f"it was ended at step {step}", curve=(*curve,))
        made: Any = SimpleNamespace(fingerprint=str(place), metrics={}, manifest={"seconds": 0})
        last = None if curve[-1][1] != curve[-1][1] else curve[-1][1]
        return Outcome({"place": place}, "full", last, made, curve=(*curve,))


def tried(pipe: Any, trials: Written, mode: Any = "min", **fields: Any) -> list[tuple[str, float | None]]:
    halving = sweep.Halving(**{"grace": 1, "reduction": 2.0, **fields})
    over = {"knob.rank": sweep.grid(*range(len(trials.losses)))}
    stage = sweep.Sweep(stage=pipe.tuned, over=over, scheduler=halving, mode=mode)
    outcomes = by_rungs(stage, len(trials.losses), trials)
    assert [each.values["place"] for each in outcomes] == list(range(len(trials.losses)))
    return [(each.status, each.value) for each in outcomes]


def flat(*losses: float) -> list[list[float]]:
    return [[loss] * ENDS for loss in losses]


def test_half_of_them_go_on_at_each_rung_and_the_last_to_its_end(pipe: Any) -> None:
    trials = Written(*flat(0.4, 0.1, 0.3, 0.2))
    assert tried(pipe, trials) == [("stopped", 0.4), ("full", 0.1), ("stopped", 0.3), ("stopped", 0.2)]
    assert trials.asked == [(1, [0, 1, 2, 3]), (2, [1, 3]), (None, [1])]
    assert tried(pipe, Written(*flat(0.4, 0.1)), "max") == [("full", 0.4), ("stopped", 0.1)]


def test_trials_are_ranked_by_the_rung_not_by_what_comes_later(pipe: Any) -> None:
    late = [0.9, *[0.0] * (ENDS - 1)]
    assert tried(pipe, Written(late, *flat(0.5))) == [("stopped", 0.9), ("full", 0.5)]


@pytest.mark.parametrize("seed", range(5))
def test_ties_go_to_the_first_whichever_ends_first(pipe: Any, seed: int) -> None:
    found = tried(pipe, Written(*flat(0.3, 0.3, 0.3, 0.3, 0.3), seed=seed))
    assert [status for status, _ in found] == ["full", *["stopped"] * 4]


@pytest.mark.parametrize("stored", [(), (0,), (1, 2), (0, 1, 2, 3)])
def test_what_is_in_the_store_is_held_to_its_rungs(pipe: Any, stored: Any) -> None:
    """Or else a sweep's winner would depend on who ran what before."""
    late = [0.9, *[0.0] * (ENDS - 1)]
    found = tried(pipe, Written(late, *flat(0.1, 0.3, 0.2), stored=stored))
    assert found == [("stopped", 0.9), ("full", 0.1), ("stopped", 0.3), ("stopped", 0.2)]


@pytest.mark.parametrize("stored", [(), (2,)])
def test_what_fails_or_is_nan_at_a_rung_does_not_go_on(pipe: Any, stored: Any) -> None:
    trials = Written([0.0, None], [None], [NAN, *[0.0] * 7], *flat(0.5, 0.6), [0.7, None], *flat(0.8, 0.9),
                     stored=stored)  # fmt: skip
    found = tried(pipe, trials)
    assert found == [
        ("failed", None), ("failed", None), ("stopped", None), ("full", 0.5), ("stopped", 0.6), ("failed", None),
        ("stopped", 0.8), ("stopped", 0.9),
    ]  # fmt: skip
    assert trials.asked[1] == (2, [0, 3, 4, 5])


def test_where_all_fail_or_are_nan_nobody_goes_on(pipe: Any) -> None:
    trials = Written([None], [NAN] * ENDS)
    assert tried(pipe, trials) == [("failed", None), ("stopped", None)]
    assert trials.asked == [(1, [0, 1])]


def test_a_trial_shorter_than_the_rung_counts_by_its_last_value(pipe: Any) -> None:
    short = [0.2, 0.2]
    trials = Written(short, *flat(0.1, 0.3))
    assert tried(pipe, trials, grace=4) == [("full", 0.2), ("full", 0.1), ("stopped", 0.3)]
    trials = Written(short, *flat(0.3))
    assert tried(pipe, trials, grace=4) == [("full", 0.2), ("stopped", 0.3)]
    assert trials.asked == [(4, [0, 1])], "it has come to its end"


def test_a_curve_has_every_rung(pipe: Any) -> None:
    """A trial that goes on measures only what comes after its checkpoint."""
    stage = sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(4, 8)}, scheduler=sweep.Halving(grace=1))

    def experiment(places: Sequence[int], until: int | None) -> list[Outcome]:
        made: Any = SimpleNamespace(fingerprint="", metrics={})
        if until is None:
            return [Outcome({}, "full", 0.1, made, curve=((2, 0.2), (3, 0.1)))]
        return [Outcome({}, "stopped", 0.3 + place, curve=((0, 1.0), (1, 0.3 + place))) for place in places]

    assert by_rungs(stage, 2, experiment)[0].curve == ((0, 1.0), (1, 0.3), (2, 0.2), (3, 0.1))
