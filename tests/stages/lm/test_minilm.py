"""The built-in embedding model: downloaded (or from the cache), checked, and near where meanings are near."""

import numpy as np
import pytest

from graftline.stages.lm import minilm
from graftline.stages.lm.embedding import SentenceEmbedder, pooling
from graftline.stages.lm.load import load_encoder, model_digest

pytestmark = pytest.mark.real
TEXTS = [
    "The invoice was charged twice.",
    "I was billed two times.",
    "No signal in the whole street.",
    "invoice " * 300,
]


def test_it_is_always_the_same_and_its_vectors_are_the_reference_ones():
    import torch

    directory, _ = minilm.directory()
    assert model_digest(directory) == "dddbed9b2da0f50ead702201235307c796393f98b63a032ed3106bc9a9e9cba9"
    assert sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()) == sorted(
        [*minilm.FILES, "weights_digest.json"]
    )
    assert pooling(directory, "minilm-l6") == "mean"
    embedder = SentenceEmbedder(directory)
    found = embedder.embed(TEXTS)
    assert found.shape == (4, 384) and embedder.most == 256 and found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert found[0] @ found[1] > 0.6 > 0.2 > found[0] @ found[2]
    # Each by itself, without padding, straight from transformers; the last is cut after 256 tokens.
    model = load_encoder(directory)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = embedder.tokenizer(text, truncation=True, max_length=256, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            mean = model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    shuffled = embedder.embed([TEXTS[2], TEXTS[0], "x", TEXTS[3]])
    assert np.allclose(shuffled[[1, 0, 3]], found[[0, 2, 3]], atol=1e-6)
