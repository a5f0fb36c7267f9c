"""The gate: it widens and halves, rests as long as it is told, lets one through while nothing is answered, and ends."""

from __future__ import annotations

import math
import threading

import pytest

from graftline.stages.errors import EngineFailed
from graftline.stages.lm.pressure import OPEN_AFTER, Pressure


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        self.now += seconds


def gate(most: int = 8, patience: float = 300.0) -> tuple[Pressure, Clock]:
    clock = Clock()
    return Pressure("m", most, patience, clock, clock.wait), clock


def test_it_widens_to_the_most_and_halves_once_for_all_in_flight() -> None:
    pressure, clock = gate(most=8)
    for _ in range(60):
        pressure.enter()
        pressure.answered()
    assert pressure.places == 8
    entered = [pressure.enter() for _ in range(8)]
    clock.now += 1
    for each in entered:
        pressure.pushed_back(each, "429", 2.0)
    assert pressure.places == 4 and pressure.flying == 0
    assert pressure.enter() == pytest.approx(103.0)  # it rested as long as it was told


def test_waits_double_and_an_answer_ends_them() -> None:
    pressure, clock = gate()
    waits = []
    for _ in range(4):
        before = clock.now
        entered = pressure.enter()
        waits.append(round(entered - before, 3))
        clock.now += 0.001
        pressure.pushed_back(entered, "500")
    assert waits == [0.0, 0.5, 1.0, 2.0]
    pressure.enter()
    pressure.answered()
    assert pressure.failures == 0
    before = clock.now
    assert pressure.enter() == before


def test_a_failure_of_one_leaves_the_others_alone() -> None:
    pressure, clock = gate()
    for _ in range(OPEN_AFTER - 1):
        before = clock.now
        entered = pressure.enter()
        assert entered == before
        clock.now += 0.001
        pressure.pushed_back(entered, "500", busy=False)
    assert pressure.places == 4, "neither fewer places nor a rest"
    assert pressure.enter(rest=0.5) == pytest.approx(clock.now) == pytest.approx(before + 0.501)
    pressure.pushed_back(clock.now, "500", busy=False)
    before = clock.now
    assert pressure.places == 1 and pressure.enter() > before + 1


def test_one_at_a_time_tries_while_nothing_is_answered() -> None:
    pressure, clock = gate()
    pressure.limit = 8.0
    for _ in range(OPEN_AFTER):
        entered = pressure.enter()
        clock.now += 0.001
        pressure.pushed_back(entered, "500")
        pressure.limit = 8.0  # what adding and halving would allow does not matter
    assert pressure.places == 1
    pressure.enter()
    pressure.answered()
    assert pressure.places == 8


def test_a_ten_minute_outage_ends_it_for_everybody() -> None:
    pressure, clock = gate(patience=300)
    began, tries = clock.now, 0
    with pytest.raises(EngineFailed, match=r"no answer for \d+ s .*503: down") as error:
        while clock.now < began + 600:
            entered = pressure.enter()
            tries += 1
            clock.now += 0.1
            pressure.pushed_back(entered, "503: down")
    assert 200 < clock.now - began <= 301 and tries < 20
    assert "run it again" in error.value.do
    with pytest.raises(EngineFailed):
        pressure.enter()


def test_a_rest_longer_than_patience_ends_it_at_once() -> None:
    pressure, _ = gate(patience=300)
    pressure.pushed_back(pressure.enter(), "429", 3600.0)
    with pytest.raises(EngineFailed, match="come back in 3600 s"):
        pressure.enter()


def test_answers_in_between_keep_it_going() -> None:
    pressure, clock = gate(patience=30)
    for _ in range(50):
        entered = pressure.enter()
        clock.now += 1
        pressure.pushed_back(entered, "429", 5.0)
        pressure.enter()
        pressure.answered()


def test_one_that_is_not_wanted_any_more_does_not_wait() -> None:
    pressure, _ = gate(most=1)
    pressure.enter()
    stop = threading.Event()
    stop.set()
    with pytest.raises(EngineFailed, match="another request failed"):
        pressure.enter(stop)
    pressure.left()
    assert pressure.flying == 0 and pressure.enter() == 100.0


def test_a_place_is_told_without_waiting() -> None:
    pressure, clock = gate(most=2)
    assert (pressure.place(), pressure.place(), pressure.place()) == (0.0, 0.0, math.inf)
    assert pressure.place(clock.now + 3) == 3.0
    assert pressure.pushed_back(clock.now, "429", 7.0) == 0 and pressure.place() == 7.0
    pressure.answered()
    assert pressure.pushed_back(pressure.enter(), "500", busy=False) == 1, "so many were answered before"
