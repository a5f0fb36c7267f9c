"""Hashed words: the same for the same words, nearer the more words are shared."""

import numpy as np

from graftline.stages.lm.embedding import open_embedder
from graftline.stages.lm.tiny_embedder import HashedWords, write


def test_its_vectors(tmp_path):
    write(tmp_path)
    model = open_embedder(tmp_path)
    assert isinstance(model, HashedWords) and model.size == 64
    found = model.embed(["the invoice is wrong", "Wrong is the INVOICE!", "the invoice is late", "no signal", "", "?!"])
    assert found.shape == (6, 64) and found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found[:4], axis=1), 1) and not found[4:].any()
    assert (found[0] == found[1]).all() and found[0] @ found[2] > found[0] @ found[3]
    assert model.embed([]).shape == (0, 64)


def test_its_vectors_are_always_the_same():
    """Fingerprints say `hashed-words-1`: other vectors need another number."""
    assert np.flatnonzero(HashedWords().embed(["order"])).tolist() == [62]
