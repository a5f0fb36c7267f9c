"""A prompt's vector is its own: no neighbour, padding or system message in it."""

import numpy as np
import pytest
import torch

from graftline.stages.lm import tiny
from graftline.stages.lm.load import load_model, load_tokenizer
from graftline.stages.serve.route.embedding import MOST_TOKENS, open_embedder, routed_text


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write(folder)
    return folder


@pytest.fixture(scope="module")
def embed(directory):
    return open_embedder(directory)


def test_it_is_the_mean_of_the_last_hidden_states(embed, directory):
    ids = load_tokenizer(directory)("the invoice was sent twice", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = load_model(directory, "float32").model(input_ids=ids).last_hidden_state[0]
    mean = states.mean(0)
    found = embed(["the invoice was sent twice"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], (mean / mean.norm()).numpy(), atol=1e-6)


def test_a_vector_does_not_depend_on_who_shares_the_call(embed):
    """CARROT's own code pads without a mask, and scores a prompt by its neighbours' lengths."""
    texts = ["no signal", "the invoice was sent twice and the payment does not work " * 9, ""]
    together = embed(texts)
    for place, text in enumerate(texts):
        assert np.array_equal(embed([text])[0], together[place])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_a_long_text_is_cut(embed):
    long = "signal " * (MOST_TOKENS + 200)
    assert np.isfinite(embed([long])).all()
    assert np.array_equal(embed([long])[0], embed([long + " and more"])[0])


def test_every_user_turn_decides_the_route():
    """RouteLLM looks at the last message alone: "and the second one?" says nothing by itself."""
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "my invoice is wrong"},
        {"role": "assistant", "content": "Which one?"},
        {"role": "user", "content": "the second"},
    ]
    assert routed_text(turns) == "my invoice is wrong\nthe second"
