"""Confidence intervals: closed form and bootstrap agree where both hold, and groups count as one draw."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.evaluate.interval import (
    clusters,
    described,
    gain,
    jackknife,
    mean,
    mean_gain,
    share,
    wilson,
)


def test_wilson_against_published_values():
    # Newcombe's comparison of methods: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_bootstrap_of_pairs_is_as_wide_as_half_the_rows():
    """Rows that come in identical pairs tell as much as half as many rows."""
    generator = random.Random(1)
    once = [generator.random() < 0.7 for _ in range(200)]
    twice = [one for one in once for _ in range(2)]
    found = share(twice, [index // 2 for index in range(400)], seed=0)
    low, high = wilson(sum(once) / 200, 200)
    assert found["value"] == sum(once) / 200
    assert found["n"] == 400
    assert found["ci_high"] - found["ci_low"] == pytest.approx(high - low, rel=0.15)
    apart = share(twice, list(range(400)), seed=0)
    assert apart["ci_high"] - apart["ci_low"] < 0.8 * (high - low)


def test_bootstrap_is_seeded():
    generator = random.Random(2)
    correct = [generator.random() < 0.6 for _ in range(300)]
    cluster = [generator.randrange(80) for _ in range(300)]
    assert share(correct, cluster, seed=3) == share(correct, cluster, seed=3)
    assert share(correct, cluster, seed=3) != share(correct, cluster, seed=4)


def test_gain_is_paired():
    """One row in fifty gets better, none worse: sure to be no loss, though the shares' own intervals overlap widely."""
    before = [index % 2 == 0 for index in range(100)]
    after = [one or index in (1, 3) for index, one in enumerate(before)]
    found = gain(before, after, list(range(100)), seed=0)
    assert found["value"] == pytest.approx(0.02)
    assert found["ci_low"] >= 0
    assert found["ci_high"] < 0.06
    assert share(before, list(range(100)), 0)["ci_high"] > share(after, list(range(100)), 0)["ci_low"]


def test_joined_groups_are_one_cluster_over_any_chain():
    assert clusters(["a", "b", "a", "c"]) == [0, 1, 0, 2]
    assert clusters(["a", "b", "a|c", "c|b"]) == [0, 0, 0, 0]


def test_it_says_how():
    assert "Wilson" in described([0, 1, 2])
    assert "2 groups" in described([0, 1, 1])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
def test_intervals_are_intervals(rows):
    found = share([one for one, _ in rows], [cluster for _, cluster in rows], seed=0)
    assert 0 <= found["ci_low"] <= found["ci_high"] <= 1


def test_a_means_interval_is_the_normal_one_and_weights_count_rows_more_often():
    draw = random.Random(0)
    numbers = [draw.gauss(3.0, 1.0) for _ in range(400)]
    found = mean([(number, 1.0) for number in numbers], list(range(400)), 0)
    half = 1.96 * statistics.stdev(numbers) / 20
    assert found["value"] == pytest.approx(statistics.mean(numbers))
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(
        (found["value"] - half, found["value"] + half), abs=0.02
    )
    weighted = mean([(1.0, 3.0), (5.0, 1.0)], [0, 1], 0)
    assert weighted["value"] == mean([(1.0, 1.0)] * 3 + [(5.0, 1.0)], [0, 0, 0, 1], 0)["value"] == 2.0
    assert (weighted["ci_low"], weighted["ci_high"]) == (1.0, 5.0)


def test_a_gain_in_means_is_paired():
    draw = random.Random(1)
    before = [(draw.gauss(0.0, 10.0), 1.0) for _ in range(100)]
    after = [(value + 1.0, weight) for value, weight in before]
    found = mean_gain(before, after, list(range(100)), 0)
    assert (found["value"], found["ci_low"], found["ci_high"]) == pytest.approx((1.0, 1.0, 1.0))


def test_a_jackknife_of_a_mean_is_the_normal_interval():
    draw = random.Random(2)
    numbers = [draw.gauss(0.0, 1.0) for _ in range(200)]
    found = jackknife(lambda places: statistics.mean(numbers[place] for place in places), list(range(200)))
    half = 1.96 * statistics.stdev(numbers) / math.sqrt(200)
    assert found["ci_high"] - found["value"] == pytest.approx(half, rel=0.35)
    # Rows of one group go together: twins tell no more than one of them.
    twins = [number for number in numbers[:100] for _ in range(2)]
    alone = jackknife(lambda places: statistics.mean(numbers[place] for place in places), list(range(100)))
    paired = jackknife(
        lambda places: statistics.mean(twins[place] for place in places), [place // 2 for place in range(200)]
    )
    assert paired["ci_high"] - paired["ci_low"] == pytest.approx(alone["ci_high"] - alone["ci_low"])
    single = jackknife(lambda places: 1.0, [0, 0])
    assert single["ci_low"] == single["value"] == 1.0


def test_of_nothing_there_is_no_number():
    for found in (share([], [], 0), gain([], [], [], 0), mean([], [], 0), jackknife(lambda places: 1.0, [])):
        assert found["n"] == 0 and math.isnan(found["value"])
