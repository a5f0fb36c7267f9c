"""Neighbours vote, every target counts alike, and a stranger goes to the base."""

import time

import numpy as np
import pytest

from graftline.stages import Embedder, read, serve
from graftline.stages.errors import InvalidField
from graftline.stages.serve.route.route import choose
from graftline.stages.serve.route.tried import Outcomes


def route(*targets, **fields):
    rows = {name: read.Jsonl(path=f"{name}.jsonl", prompt="{a}", answer="{b}") for name in targets or ("a", "b")}
    return serve.NearestNeighbours(rows=rows, embedder=Embedder("tiny"), **fields)


def quality(stage, fitted, vectors):
    return stage.quality(*fitted, vectors)


def test_shares_of_the_nearest(clouds):
    vectors, labels, groups = clouds(6, 6)
    stage = route(k=3)
    fitted = stage.fit(vectors, labels, groups)
    assert quality(stage, fitted, vectors).argmax(1).tolist() == labels.tolist()
    between = (vectors[labels == 0].mean(0) + vectors[labels == 1].mean(0))[None]
    assert 0 < quality(stage, fitted, between / np.linalg.norm(between))[0].min() < 1


def test_scikit_learn_finds_the_same_neighbours(clouds):
    from sklearn.neighbors import KNeighborsClassifier

    vectors, labels, groups = clouds(20, 20, 20, spread=2.0)
    stage = route("a", "b", "c", k=5)
    theirs = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(vectors, labels)
    asked = clouds(10, 10, 10, spread=2.0, seed=1)[0]
    found = quality(stage, stage.fit(vectors, labels, groups), asked)
    np.testing.assert_allclose(found, theirs.predict_proba(asked), atol=1e-6)


def test_a_target_with_many_rows_does_not_win_by_their_number(clouds):
    vectors, labels, groups = clouds(200, 5, spread=2.0)
    stage = route(k=64)
    found = quality(stage, stage.fit(vectors, labels, groups), clouds(0, 40, spread=2.0, seed=3)[0])
    assert (found.argmax(1) == 1).mean() > 0.7


def test_who_is_like_nobody_goes_to_the_base(clouds):
    vectors, labels, groups = clouds(8)
    stage = route("tickets", k=3, least=0.5)
    assert stage.targets == ("base", "tickets")
    fitted = stage.fit(vectors, labels + 1, groups)
    stranger = np.eye(16, dtype=np.float32)[[9]]
    assert quality(stage, fitted, vectors[:1]).tolist() == [[0.0, 1.0]]
    assert quality(stage, fitted, stranger).tolist() == [[1.0, 0.0]]


def test_k_is_chosen_by_cross_validation_over_groups(clouds):
    vectors, labels, groups = clouds(30, 30, spread=4.0)
    chosen = route().fit(vectors, labels, groups)[1]["k"]
    assert 2 < chosen <= 48
    assert route().fit(*clouds(1, 1))[1]["k"] == 2  # no fold has both targets
    # Every row twice, in one group: neighbours that leak would make the smallest k look best.
    twice = [np.repeat(each, 2, axis=0) for each in (vectors, labels, groups)]
    assert route().fit(*twice)[1]["k"] > 2


def test_equally_near_prompts_go_by_their_order():
    vectors = np.tile(np.eye(4, dtype=np.float32)[:1], (4, 1))
    stage = route(k=1)
    fitted = stage.fit(vectors, np.array([1, 0, 0, 1]), np.arange(4))
    assert quality(stage, fitted, vectors[:1]).tolist() == [[0.0, 1.0]]


def test_a_thousand_prompts_take_under_10_ms(clouds):
    vectors, labels, groups = clouds(500, 500, width=384)
    stage = route(k=16)
    fitted = stage.fit(vectors, labels, groups)
    seconds = []
    for row in vectors[:200]:
        begun = time.perf_counter()
        choose(quality(stage, fitted, row[None])[0], np.zeros(2), 0.0)
        seconds.append(time.perf_counter() - begun)
    assert sorted(seconds)[int(0.99 * len(seconds))] < 0.01


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_the_same_table_gives_the_same_choice(clouds, mu):
    vectors, labels, groups = clouds(40, 40, spread=3.0)
    asked = clouds(20, 20, spread=3.0, seed=5)[0]
    stage, costs = route(k=8), np.array([0.1, 0.6])
    fitted = stage.fit(vectors, labels, groups)
    together = [choose(row, costs, mu) for row in quality(stage, fitted, asked)]
    alone = [choose(quality(stage, fitted, row[None])[0], costs, mu) for row in asked]
    assert together == alone


TRIED = serve.Tried(quality="answer", prices={name: serve.Price(input=1.0, output=2.0) for name in "abc"})


def tried(**fields):
    return route("a", "b", "c", tried=TRIED, **fields)


def test_scikit_learn_estimates_the_same_quality_and_tokens(outcomes):
    from sklearn.neighbors import KNeighborsRegressor

    table, asked = outcomes(spread=3.0), outcomes(spread=3.0, seed=1).vectors
    table.quality[:20, 0] = np.nan  # not tried on these
    table.tokens_out[::3, 1] = np.nan
    stage = tried(k=7)
    fitted = stage.fit_tried(table)
    for values, found in (
        (table.quality, stage.quality(*fitted, asked)),
        (table.tokens_out, stage.tokens(*fitted, asked)),
    ):
        for target in range(3):
            known = ~np.isnan(values[:, target])
            theirs = KNeighborsRegressor(7, metric="cosine", algorithm="brute")
            theirs.fit(table.vectors[known], values[known, target])
            np.testing.assert_allclose(found[:, target], theirs.predict(asked), atol=1e-9)


def test_quality_and_tokens_have_their_own_k_and_groups_stay_together(outcomes):
    table = outcomes(spread=4.0, luck=0.3)
    settings = tried().fit_tried(table)[1]
    assert set(settings["k_quality"]) | set(settings["k_tokens"]) <= {2, 4, 8, 16, 32, 64}
    assert settings["k"] == min(settings["k_quality"])
    assert min(settings["k_quality"][0], settings["k_quality"][2], *settings["k_tokens"]) > 2
    # Every prompt twice, in one group: neighbours that leak would make the smallest k look best.
    twice = table.at(np.repeat(np.arange(len(table.groups)), 2))
    assert min(tried().fit_tried(twice)[1]["k_quality"][::2]) > 2
    leaking = tried().fit_tried(Outcomes(**{**vars(twice), "groups": np.arange(len(twice.groups))}))[1]
    assert leaking["k_quality"] == [2, 2, 2]
    assert "tokens" not in route("a", "b", "c", tried=serve.Tried(quality="answer")).fit_tried(table)[0]


def test_one_target_more_changes_nothing_about_the_others(outcomes):
    table, asked = outcomes(spread=3.0), outcomes(spread=3.0, seed=1).vectors
    fewer = Outcomes(**{**vars(table), "quality": table.quality[:, :2], "tokens_out": table.tokens_out[:, :2]})
    stage, less = (
        tried(),
        route("a", "b", tried=serve.Tried(quality="answer", prices={n: TRIED.prices[n] for n in "ab"})),
    )
    fitted, without = stage.fit_tried(table), less.fit_tried(fewer)
    for estimate in (stage.quality, stage.tokens):
        np.testing.assert_array_equal(estimate(*fitted, asked)[:, :2], estimate(*without, asked))


def test_who_is_like_nobody_goes_to_the_base_of_those_tried(outcomes):
    stage = route("base", "b", "c", tried=serve.Tried(quality="answer"), k=3, least=0.5)
    fitted = stage.fit_tried(outcomes(spread=0.3))
    stranger = np.eye(16, dtype=np.float32)[[9]]
    assert stage.quality(*fitted, stranger).tolist() == [[0.0, 1.0, 0.0]]  # b, base, c
    assert stage.quality(*fitted, np.eye(16, dtype=np.float32)[[0]])[0].max() > 0.5
    with pytest.raises(InvalidField, match=r"NearestNeighbours\.least: the base"):
        route("a", "b", tried=serve.Tried(quality="answer"), least=0.5)


def test_a_thousand_tried_prompts_take_under_10_ms(outcomes):
    table = outcomes(500, width=384)
    stage = tried(k=16)
    fitted = stage.fit_tried(table)
    seconds = []
    for row in table.vectors[:200]:
        begun = time.perf_counter()
        choose(stage.quality(*fitted, row[None])[0], stage.tokens(*fitted, row[None])[0], 0.5)
        seconds.append(time.perf_counter() - begun)
    assert sorted(seconds)[int(0.99 * len(seconds))] < 0.01
