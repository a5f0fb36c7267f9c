"""Embedding texts: pooled with the mask, of length 1, each as if it were alone."""

import json
import random
import shutil

import numpy as np
import pytest

from graftline.stages.errors import ModelNotFound
from graftline.stages.lm.embedding import SentenceEmbedder, open_embedder, pooling

TEXTS = [
    "hello",
    "the order was never delivered to our street",
    "",
    "漢字 and 12 numbers",
    "hello the hello order " * 9,
]


@pytest.fixture(scope="module")
def vectors(encoder_directory):
    return SentenceEmbedder(encoder_directory).embed(TEXTS)


def test_the_mean_over_a_texts_own_tokens(encoder_directory, vectors):
    import torch

    embedder = open_embedder(encoder_directory)
    assert isinstance(embedder, SentenceEmbedder) and embedder.size == 32
    assert vectors.shape == (5, 32) and vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = embedder.tokenizer(text, truncation=True, max_length=24)["input_ids"]
        if not ids:  # this tokenizer adds no marks
            assert not vector.any()
            continue
        with torch.inference_mode():
            mean = embedder.model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 1, 1], atol=1e-6)


def test_a_vector_does_not_depend_on_its_company(encoder_directory, vectors):
    embedder = SentenceEmbedder(encoder_directory)
    draw = random.Random(2)
    many = TEXTS * 6
    for _ in range(3):
        order = draw.sample(range(len(many)), draw.randint(1, len(many)))
        found = embedder.embed([many[place] for place in order])
        assert np.allclose(found, vectors[[place % len(TEXTS) for place in order]], atol=1e-6)
    assert np.allclose(embedder.embed(TEXTS, block=1), vectors, atol=1e-6)
    assert embedder.embed([]).shape == (0, 32)


def test_long_texts_are_cut_where_the_directory_says(encoder_directory, tmp_path):
    embedder = SentenceEmbedder(encoder_directory)
    assert embedder.most == 24
    long = "order " * 50
    assert np.allclose(*embedder.embed([long, long + "never delivered"]), atol=1e-6)
    whole = tmp_path / "whole"
    shutil.copytree(encoder_directory, whole)
    (whole / "sentence_bert_config.json").unlink()
    assert SentenceEmbedder(whole).most == 64, "as many as there are positions"


def test_pooling_is_as_the_directory_says(encoder_directory, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(encoder_directory, folder)
    assert pooling(folder, "mine") == "mean"
    config = folder / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    first = SentenceEmbedder(folder)
    assert first.pooling == "cls"
    found, plain = first.embed(TEXTS), SentenceEmbedder(encoder_directory).embed(TEXTS)
    assert not np.allclose(found[1], plain[1], atol=1e-3) and np.isclose(np.linalg.norm(found[1]), 1)
    for told in ({"pooling_mode_max_tokens": True}, {"pooling_mode_lasttoken": True}, {"pooling_mode": "weightedmean"}):
        config.write_text(json.dumps(told))
        with pytest.raises(ModelNotFound, match="pools its tokens by"):
            pooling(folder, "mine")
    config.unlink()
    assert pooling(folder, "mine") == "mean"
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ModelNotFound, match="a layer Dense"):
        pooling(folder, "mine")
