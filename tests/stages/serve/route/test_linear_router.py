"""A logistic regression without scikit-learn's object: the same probabilities."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from graftline.stages import Embedder, read, serve
from graftline.stages.errors import InvalidField


def route(*targets, **fields):
    rows = {name: read.Jsonl(path=f"{name}.jsonl", prompt="{a}", answer="{b}") for name in targets}
    return serve.LinearRouter(rows=rows, embedder=Embedder("tiny"), **fields)


@pytest.mark.parametrize("sizes", [(30, 10), (30, 20, 10)])
def test_probabilities_are_scikit_learns(clouds, sizes):
    vectors, labels, groups = clouds(*sizes, spread=2.0)
    stage = route(*"abc"[: len(sizes)], strength=3.0)
    theirs = LogisticRegression(C=3.0, class_weight="balanced", max_iter=1000).fit(vectors, labels)
    asked = clouds(*sizes, spread=2.0, seed=1)[0]
    found = stage.quality(*stage.fit(vectors, labels, groups), asked)
    np.testing.assert_allclose(found, theirs.predict_proba(asked), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1)


def test_separable_clusters_are_told_apart(clouds):
    vectors, labels, groups = clouds(40, 5, 15)
    stage = route("a", "b", "c")
    fitted = stage.fit(vectors, labels, groups)
    asked, wanted, _ = clouds(20, 20, 20, seed=1)
    assert (stage.quality(*fitted, asked).argmax(1) == wanted).all()
    assert all(each.dtype == np.float64 for each in fitted[0].values())


def test_one_target_is_nothing_to_tell_apart():
    with pytest.raises(InvalidField, match=r"LinearRouter\.rows: one target"):
        route("a")
    with pytest.raises(InvalidField, match=r"LinearRouter\.strength"):
        route("a", "b", strength=0.0)


TRIED = serve.Tried(quality="answer", prices={name: serve.Price(input=1.0, output=2.0) for name in "abc"})


def test_estimates_of_what_was_tried_are_scikit_learns(outcomes):
    table, asked = outcomes(spread=3.0), outcomes(spread=3.0, seed=1).vectors
    table.quality[:20, 0] = table.tokens_out[:20, 0] = np.nan  # not tried on these
    stage = route("a", "b", "c", tried=TRIED, strength=3.0)
    fitted = stage.fit_tried(table)
    quality, tokens = stage.quality(*fitted, asked), stage.tokens(*fitted, asked)
    for target in range(3):
        known = ~np.isnan(table.quality[:, target])
        right, written = table.quality[known, target], table.tokens_out[known, target]
        theirs = LogisticRegression(C=3.0, max_iter=1000).fit(table.vectors[known], right)
        np.testing.assert_allclose(quality[:, target], theirs.predict_proba(asked)[:, 1], atol=2e-4)
        # Ridge in closed form, by hand.
        centre, mean = table.vectors[known].mean(0, dtype=float), written.mean()
        moved = table.vectors[known] - centre
        slope = np.linalg.solve(moved.T @ moved + np.eye(16) / 3.0, moved.T @ (written - mean))
        np.testing.assert_allclose(tokens[:, target], np.maximum(mean + (asked - centre) @ slope, 0), rtol=1e-4)
    assert all(each.dtype == np.float64 for each in fitted[0].values())


def test_all_right_all_wrong_and_half_right(outcomes):
    table = outcomes(30)
    table.quality[:] = [1.0, 0.0, 0.5]
    table.quality[10:, 1] = np.nan
    stage = route("a", "b", "c", tried=serve.Tried(quality="answer"))
    found = stage.quality(*stage.fit_tried(table), table.vectors)
    np.testing.assert_allclose(found, np.tile([61 / 62, 1 / 12, 0.5], (60, 1)), atol=1e-4)


def test_tokens_are_never_fewer_than_none(outcomes):
    table = outcomes(30)
    table.tokens_out[:] = np.where(np.arange(60)[:, None] < 30, 0.0, 1000.0)
    stage = route("a", "b", "c", tried=TRIED)
    fitted = stage.fit_tried(table)
    found = stage.tokens(*fitted, np.vstack([table.vectors, 3 * table.vectors[:30]]))
    assert found.min() == 0.0 and found.max() > 500
