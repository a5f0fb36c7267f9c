"""CARROT's rule over mu, and the area between its curve and the line that joins single targets."""

import numpy as np
import pytest

from graftline.stages.serve.route.tradeoff import areas, chosen, line, report, roc_area, swept

TARGETS = ("a", "b", "c")


@pytest.fixture
def table():
    """Quality and cost of three targets on 300 prompts."""
    draw = np.random.default_rng(0)
    return draw.random((300, 3)), draw.random((300, 3)) * [0.2, 0.5, 1.0]


def test_the_ends_of_mu_and_a_cost_that_never_rises(table):
    quality, cost = table
    mus, picks = swept(quality, cost)
    every = np.arange(len(quality))
    assert mus[0] == 0.0 and (np.diff(mus) > 0).all()
    assert (picks[0] == quality.argmax(1)).all() and (picks[-1] == cost.argmin(1)).all()
    paid = cost[every, picks]
    assert (np.diff(paid, axis=0) <= 1e-12).all()  # of every prompt, so of any set
    for mu in np.linspace(0, 1, 38):
        at = np.searchsorted(mus, round(mu, 3), side="right") - 1
        assert (picks[at] == chosen(quality, cost, round(mu, 3))).all()


def test_of_equals_the_cheapest_then_the_best_then_the_first():
    quality, cost = np.array([0.5, 0.9, 0.9, 0.9]), np.array([0.1, 0.3, 0.2, 0.2])
    assert chosen(quality, cost, 0.0) == 2
    assert chosen(np.array([0.5, 0.9, 0.9]), np.array([0.1, 0.1, 0.1]), 1.0) == 1


@pytest.mark.parametrize("mu", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("before", [False, True])
def test_a_dominated_target_is_never_chosen(table, mu, before):
    """Not even where it is as good, or as cheap, and comes first."""
    quality, cost = table
    for own in ((quality[:, :1], cost[:, :1] + 0.1), (quality[:, :1] - 0.1, cost[:, :1]), (quality * 0, cost + 2)):
        both = [(new[:, :1], old) if before else (old, new[:, :1]) for new, old in zip(own, table, strict=True)]
        found = chosen(*(np.hstack(each) for each in both), mu)
        assert (found == chosen(quality, cost, mu) + before).all()


def test_an_oracle_is_nowhere_below_a_single_target(table):
    quality, cost = (table[0] < 0.5).astype(float), table[1]
    every = np.arange(len(quality))
    mus, picks = swept(quality, cost)
    paid, got = cost[every, picks].mean(1), quality[every, picks].mean(1)
    for mu, c, q in zip(mus, paid, got, strict=True):
        assert (1 - mu) * q - mu * c >= ((1 - mu) * quality - mu * cost).mean(0).max() - 1e-12
    for c, q in zip(cost.mean(0), quality.mean(0), strict=True):
        assert np.interp(c, paid[::-1], got[::-1]) >= q
    found = report(TARGETS, every, 0.3, quality, cost, quality, cost)
    assert found["above_line"]["ci_low"] > 0.1
    assert found["area"]["routed"] - found["area"]["line"] == pytest.approx(found["above_line"]["value"])


def test_the_line_is_the_upper_hull_from_the_cheapest_to_the_best():
    cost, quality = [0.5, 0.1, 0.3, 0.4, 0.9, 0.1], [0.9, 0.2, 0.5, 0.8, 0.7, 0.1]
    assert line(cost, quality) == ([0.1, 0.4, 0.5], [0.2, 0.8, 0.9])
    assert line([0.0, 0.0], [0.3, 0.6]) == ([0.0], [0.6])


def test_areas_by_hand():
    cost, quality = np.array([0.0, 1.0]), np.array([0.0, 1.0])
    assert areas(np.array([0.0, 1.0]), np.array([0.0, 1.0]), cost, quality) == pytest.approx((0.5, 0.5))
    assert areas(np.array([0.5, 0.0, 1.0]), np.array([1.0, 0.0, 1.0]), cost, quality) == pytest.approx(
        (0.75, 0.5), abs=1e-3
    )
    # What is never as cheap as the cheapest target gets no credit for it.
    assert areas(np.array([0.5]), np.array([0.9]), cost, quality) == pytest.approx((0.9, 0.75), abs=1e-3)
    # One target more that is dearer and worse than another moves nothing.
    more = np.append(cost, 5.0), np.append(quality, 0.5)
    assert areas(np.array([0.5]), np.array([0.9]), *more) == areas(np.array([0.5]), np.array([0.9]), cost, quality)


def test_choosing_by_chance_is_not_above_the_line():
    """Estimates that say nothing of the prompt are worth nothing: what the curve shows is not the best of its points
    by luck."""
    draw = np.random.default_rng(3)
    quality = (draw.random((2000, 2)) < [0.4, 0.8]).astype(float)
    cost = np.tile([0.1, 1.0], (2000, 1))
    blind = np.array([0.4, 0.8]) + 0.3 * draw.normal(size=(2000, 2))
    found = report(("a", "b"), np.arange(2000), 0.0, quality, cost, blind, cost)["above_line"]
    assert -0.03 < found["value"] < 0.003


def test_only_prompts_that_all_were_tried_on_are_compared(table):
    quality, cost = table[0].copy(), table[1]
    quality[:100, 1] = np.nan
    guess = np.where(np.arange(300)[:, None] < 290, table[0], np.nan)  # the last fold had too few groups
    found = report(TARGETS, np.arange(300), 0.5, quality, cost, guess, cost)
    assert found["prompts"] == 190
    assert [each["quality"] for each in found["always"]] == pytest.approx(table[0][100:290].mean(0))
    assert np.sum([found["routed"]["shares"][name] for name in TARGETS], axis=0) == pytest.approx(1)
    assert report(TARGETS, np.arange(300), 0.5, quality * np.nan, cost, guess, cost) == {"prompts": 0}


def test_the_roc_area_is_scikit_learns_and_takes_shares():
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(0)
    truth, estimate = draw.integers(0, 2, 50).astype(float), draw.random(50).round(1)
    assert roc_area(truth, estimate) == pytest.approx(roc_auc_score(truth, estimate))
    # Half right is once right and once wrong.
    twice = np.repeat(truth, 2), np.repeat(estimate, 2)
    assert roc_area(np.append(truth, 0.5), np.append(estimate, 0.7)) == pytest.approx(
        roc_auc_score(np.append(twice[0], [1, 0]), np.append(twice[1], [0.7, 0.7]))
    )
    assert roc_area(np.ones(5), np.arange(5.0)) is None
