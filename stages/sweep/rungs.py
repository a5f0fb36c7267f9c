"""Trials that are ranked together: all are run to a rung before any goes on to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from graftline.stages.sweep.outcome import Outcome

if TYPE_CHECKING:
    from graftline.stages.sweep.sweep import Sweep

Experiment = Callable[[Sequence[int], int | None], Sequence[Outcome]]
"""Runs the trials at these places to the first evaluation at or after a step (None: to their ends), in any order."""


def by_rungs(sweep: Sweep, count: int, experiment: Experiment) -> list[Outcome]:
    """What came of each trial, in their order. It depends on what they measure at the rungs, and on nothing else: one
    that was in the store, whole, is held to its rungs like any other."""
    scheduler = sweep.scheduler
    assert scheduler is not None
    sign = 1.0 if sweep.mode == "min" else -1.0
    found: dict[int, Outcome] = {}
    left = list(range(count))
    for rung in scheduler.rungs():
        running = [place for place in left if place not in found or not ended_before(found[place], rung)]
        if len(left) < 2 or not running:
            break
        for place, outcome in zip(running, experiment(running, rung), strict=True):
            found[place] = joined(found.get(place), outcome)
        values = [at(found[place], rung) for place in left]
        going = {left[each] for each in scheduler.go_on([None if each is None else sign * each for each in values])}
        for place, value in zip(left, values, strict=True):
            if place not in going and found[place].status == "full" and not ended_before(found[place], rung):
                found[place] = held_to(found[place], rung, value)
        left = [place for place in left if place in going]
    unfinished = [place for place in left if place not in found or found[place].status == "stopped"]
    for place, outcome in zip(unfinished, experiment(unfinished, None) if unfinished else (), strict=True):
        found[place] = joined(found.get(place), outcome)
    return [found[place] for place in range(count)]


def at(outcome: Outcome, rung: int) -> float | None:
    """What a trial counts by at a rung: its first value there or later, else its last; None where it is no number."""
    if outcome.status == "failed":
        return None
    if ended_before(outcome, rung):
        return outcome.value
    value = next(value for step, value in outcome.curve if step >= rung)
    return value if value == value and abs(value) != float("inf") else None


def ended_before(outcome: Outcome, rung: int) -> bool:
    """Whether a trial came to its end before a rung."""
    return outcome.status != "stopped" and all(step < rung for step, _ in outcome.curve)


def held_to(outcome: Outcome, rung: int, value: float | None) -> Outcome:
    """A whole trial from the store as it would be had it been ended at a rung."""
    step = next(step for step, _ in outcome.curve if step >= rung)
    curve = tuple(each for each in outcome.curve if each[0] <= step)
    return Outcome(outcome.values, "stopped", value, why=f"it was ended at step {step}", curve=curve)


def joined(before: Outcome | None, now: Outcome) -> Outcome:
    """A trial that went on: its curve has what it measured before, too."""
    curve = {**dict(before.curve if before else ()), **dict(now.curve)}
    return replace(now, curve=tuple(sorted(curve.items())))
