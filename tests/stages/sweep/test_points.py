"""Combinations: every one of a grid, and draws that depend on the seed alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages import sweep
from graftline.stages.errors import InvalidField
from graftline.stages.sweep.points import combinations, grid_points, random_points, written


def test_a_grid_is_every_combination() -> None:
    domains = [sweep.grid(1, 2), sweep.integers(5, 7), sweep.choice("a")]
    assert grid_points(domains) == [(one, two, "a") for one in (1, 2) for two in (5, 6, 7)]
    assert combinations(domains) == 6 and combinations([*domains, sweep.uniform(0, 1)]) is None


@given(seed=st.integers(0, 2**32), count=st.integers(1, 20), more=st.integers(1, 20))
def test_more_trials_go_on_where_fewer_ended(seed: int, count: int, more: int) -> None:
    domains = [sweep.log_uniform(1e-5, 1e-1), sweep.choice("a", "b"), sweep.integers(-3, 3)]
    found = random_points(domains, count + more, seed)
    assert found[:count] == random_points(domains, count, seed) and len(found) == count + more
    assert len({written(point) for point in found}) == len(found)
    assert all(1e-5 <= lr <= 1e-1 and letter in "ab" and -3 <= whole <= 3 for lr, letter, whole in found)


def test_draws_end_where_there_are_no_more_combinations() -> None:
    domains = [sweep.choice(1, 2), sweep.integers(0, 1)]
    assert sorted(random_points(domains, 99, 0)) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_each_domain_is_drawn_as_it_says() -> None:
    points = random_points([sweep.uniform(0, 4), sweep.log_uniform(1e-4, 1.0), sweep.integers(1, 4)], 2000, 1)
    linear, log, whole = zip(*points, strict=True)
    for quarter in range(4):
        assert sum(quarter <= value < quarter + 1 for value in linear) == pytest.approx(500, abs=70)
        assert sum(quarter <= math.log10(value) + 4 < quarter + 1 for value in log) == pytest.approx(500, abs=70)
        assert whole.count(quarter + 1) == pytest.approx(500, abs=70)
    assert {type(value) for value in whole} == {int} and {type(value) for value in linear} == {float}
    assert random_points([sweep.uniform(0, 4)], 5, 1) != random_points([sweep.uniform(0, 4)], 5, 2)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: sweep.grid(), "grid: has no value"),
        (lambda: sweep.grid(4, 8, 4), "grid: has a value twice"),
        (lambda: sweep.uniform(2, 2), "range: is empty"),
        (lambda: sweep.log_uniform(0.0, 1.0), "log_uniform: begins at 0"),
        (lambda: sweep.integers(1, 1), "range: is empty"),
        (lambda: sweep.integers(1, 2.5), "integers: goes from 1 to 2.5"),  # type: ignore[arg-type]
        (lambda: sweep.uniform(0, math.inf), "Ranged.high"),
        (lambda: sweep.grid(object()), "not a value a stage can hold"),
    ],
)
def test_domains_without_values_are_refused(make: object, error: str) -> None:
    with pytest.raises(InvalidField, match=error):
        make()  # type: ignore[operator]
