"""A list of values: each once, drawn evenly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField
from graftline.stages.sweep import choice, grid
from graftline.stages.sweep.listed import Listed


def test_grid_and_choice_make_the_same_list():
    assert grid(4, 8) == choice(4, 8) == Listed(values=(4, 8))
    assert grid(4, 8).listed() == grid(4, 8).ends() == (4, 8)


@pytest.mark.parametrize(("values", "says"), [((), "no value"), ((1, 2, 1), "a value twice"), (("a", "a"), "twice")])
def test_an_empty_or_repeated_list_is_refused(values, says):
    with pytest.raises(InvalidField, match=says):
        grid(*values)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 9))
def test_every_share_is_a_value_and_every_value_has_a_share(share, count):
    listed = grid(*range(count))
    assert listed.at(share) == int(share * count)
    assert {listed.at((each + 0.5) / count) for each in range(count)} == set(range(count))


def test_tune_draws_places_since_a_value_may_be_a_plug():
    assert [grid("a", "b").from_tune(place) for place in (0, 1)] == ["a", "b"]
