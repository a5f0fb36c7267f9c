"""Charts: round ticks that cover the data, points where their values say, nothing for no data."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.pipelines.report_charts import bins, histogram, interval, lines, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e6))
def test_ticks_cover_the_range_in_round_steps(low, span):
    marks = ticks(low, low + span)
    assert marks[0] <= low + 1e-6 * abs(span) + 1e-9 and marks[-1] >= low + span - 1e-6 * span - 1e-9
    assert 2 <= len(marks) <= 12
    step = marks[1] - marks[0]
    assert any(abs(step / 10 ** math.floor(math.log10(step * 1.0001)) - factor) < 1e-3 for factor in (1, 2, 5, 10))


def test_a_curve_goes_where_its_values_are():
    svg = lines({"loss": [(0, 4.0), (1, 2.0), (2, 1.0)]})
    ElementTree.fromstring(svg)
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', svg).group(1).split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    heights = [y for _, y in points]
    assert heights[0] < heights[1] < heights[2], "a smaller loss lies lower"
    assert (heights[1] - heights[0]) == pytest.approx(2 * (heights[2] - heights[1]), abs=0.3)


def test_values_that_are_not_finite_are_left_out():
    svg = lines({"loss": [(0, float("nan")), (1, 2.0), (2, float("inf"))]})
    assert "nan" not in svg and "inf" not in svg
    assert lines({"loss": [(0, float("nan"))]}) == ""
    assert lines({"flat": [(0, 1.0), (1, 1.0)]}) != ""


def test_a_long_curve_is_thinned_and_keeps_its_end():
    svg = lines({"loss": [(step, 1 / (step + 1)) for step in range(100_000)]})
    assert len(svg) < 20_000
    assert ElementTree.fromstring(svg) is not None


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50))
def test_every_value_falls_into_one_bin(values):
    assert sum(bins(values, min(values), max(values), 8)) == len(values)


def test_chosen_rows_stand_in_front():
    svg = histogram([0.1, 0.2, 0.3, 0.9], [0.9])
    ElementTree.fromstring(svg)
    assert svg.count("bar front") == 1 and svg.count("bar back") >= 3
    assert "bar back" not in histogram([0.1, 0.2, 0.3])
    assert histogram([]) == histogram([float("nan")]) == ""


def test_an_interval_stays_on_its_scale():
    places = [float(at) for at in re.findall(r'c[x]="([\d.]+)"', interval(2.0, -1.0, 3.0))]
    assert places == [154.0]
    svg = interval(0.5, 0.4, 0.6)
    assert [float(at) for at in re.findall(r'x[12]="([\d.]+)"', svg)][2:] == pytest.approx([65.2, 94.8])
