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
