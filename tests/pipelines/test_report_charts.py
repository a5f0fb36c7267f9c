"""Charts: round ticks that cover the data, points where their values say, nothing for no data."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.pipelines.report_charts import Point, bins, curves, histogram, interval, lines, log_ticks, scatter, ticks


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


@given(st.floats(1e-6, 1e6), st.floats(1.1, 1e8))
def test_log_ticks_surround_the_range_and_are_few(low, factor):
    marks = log_ticks(low, low * factor)
    assert marks == sorted(marks) and 2 <= len(marks) <= 14
    assert marks[0] <= low * 1.0001 and len(marks) == len(set(marks))


def circles(svg):
    ElementTree.fromstring(svg)
    return {
        title: (float(x), float(y))
        for x, y, title in re.findall(r'class="trial \w+" cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>([^<]*)', svg)
    }


def test_points_lie_where_their_values_say():
    points = [Point(4, 3.0, "full", "four"), Point(8, 1.0, "best", "eight"), Point(16, 2.0, "stopped", "sixteen")]
    found = circles(scatter(points, "rank"))
    assert found["four"][0] < found["eight"][0] < found["sixteen"][0]
    assert found["four"][1] < found["sixteen"][1] < found["eight"][1], "a smaller metric lies lower"
    spread = circles(scatter(points, "rank", log=True))
    assert spread["sixteen"][0] - spread["eight"][0] == pytest.approx(spread["eight"][0] - spread["four"][0], abs=0.2)
    assert found["sixteen"][0] - found["eight"][0] > 1.9 * (found["eight"][0] - found["four"][0])


def test_what_came_to_nothing_is_a_cross_on_the_floor():
    svg = scatter([Point(1, 2.0, "best", "good"), Point(2, math.nan, "failed", "it broke")], "rank")
    ElementTree.fromstring(svg)
    assert svg.count('class="trial failed"') == 1 and "it broke" in svg and "nan" not in svg
    assert scatter([Point(1, math.nan, "failed", "")], "rank") == scatter([], "rank") == ""


def test_names_stand_below_places_and_are_escaped():
    svg = scatter([Point(0, 1.0, "full", "<b>"), Point(1, 2.0, "best", "")], "adapter", ("Lora(rank=2)", "<script>"))
    ElementTree.fromstring(svg)
    assert "Lora(rank=2)" in svg and "&lt;script" in svg and "<b>" not in svg


def test_a_wide_spread_of_values_is_shown_by_orders_of_magnitude():
    found = circles(scatter([Point(place, 10.0**place, "full", str(place)) for place in range(5)], "lr"))
    heights = [found[str(place)][1] for place in range(5)]
    steps = [one - other for one, other in itertools.pairwise(heights)]
    assert max(steps) - min(steps) < 0.5, "a diverging trial does not press the others together"


def test_the_best_curve_is_in_front_and_each_has_its_end():
    series = [("best", "a", [(1, 2.0), (2, 1.0)]), ("full", "b", [(1, 3.0), (2, math.nan)]), ("stopped", "c", [])]
    svg = curves(series)
    ElementTree.fromstring(svg)
    assert re.findall(r'class="curve (\w+)"', svg) == ["full", "best"]
    assert "nan" not in svg and svg.count("<circle") == 2
    assert curves([("full", "b", [])]) == ""


def test_bars_say_how_many_were_kept():
    svg = histogram([1, 1, 2, 2, 2], [2])
    assert "0.5 to 1.5: 2<" in svg and "1.5 to 2.5: 1 kept<" in svg


def test_ticks_do_not_run_into_one_another():
    svg = scatter([Point(place * 1e-5, 1.0, "full", "") for place in range(1, 60)], "lr", log=True)
    found = re.findall(r'class="tick" x="([\d.]+)"[^>]*>([^<]+)<', svg)
    assert len(found) >= 2
    for (left, one), (right, other) in itertools.pairwise(found):
        assert float(right) - float(left) > 3 * (len(one) + len(other))
