"""Neighbours vote, every target counts alike, and a stranger goes to the base."""

import time

import numpy as np
import pytest

from graftline.stages import Embedder, read, serve
from graftline.stages.serve.route.route import choose


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
