"""Ranges of numbers: what is drawn lies in them, evenly or by orders of magnitude; empty ones are refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField
from graftline.stages.sweep import integers, log_uniform, uniform

shares = st.floats(0, 1, exclude_max=True)


@given(shares, st.floats(1e-6, 1e3), st.floats(1e-3, 1e3))
def test_numbers_lie_in_their_range(share, low, span):
    assert low <= uniform(low, low + span).at(share) <= low + span
    assert low <= log_uniform(low, low + span).at(share) <= low + span


@given(shares, st.integers(-50, 50), st.integers(1, 50))
def test_whole_numbers_reach_both_ends(share, low, span):
    domain = integers(low, low + span)
    assert type(domain.at(share)) is int and low <= domain.at(share) <= low + span
    assert domain.listed() == tuple(range(low, low + span + 1))


def test_half_way_is_the_mean_or_the_geometric_mean():
    assert uniform(1, 3).at(0.5) == 2
    assert log_uniform(1e-4, 1e-2).at(0.5) == pytest.approx(1e-3)
    assert math.isclose(log_uniform(1e-4, 1e-2).at(0.25), 10**-3.5)
    assert uniform(1, 3).ends() == (1, 3) and integers(1, 3).ends() == (1, 3) and uniform(1, 3).listed() is None


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: uniform(2, 2), "is empty"),
        (lambda: uniform(3, 2), "is empty"),
        (lambda: log_uniform(0, 1), "begins at 0"),
        (lambda: integers(0.5, 2), "whole numbers"),
    ],
)
def test_what_is_no_range_is_refused(build, says):
    with pytest.raises(InvalidField, match=says):
        build()
