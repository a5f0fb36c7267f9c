"""The tiny model is the same everywhere, is a Hugging Face directory, and its tokenizer loses nothing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.lm import tiny
from graftline.stages.lm.load import load_model, load_tokenizer, model_digest

TOKENIZER = tiny.build_tokenizer()


def test_it_is_always_the_same(tiny_directory, tmp_path):
    tiny.write(tmp_path)
    for file in ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / file).read_bytes() == (tiny_directory / file).read_bytes()
    # A change here changes every result of it: raise the number in tiny.IDENTITY with it.
    assert (tiny.IDENTITY, model_digest(tmp_path)[:16]) == ("tiny-1", "b13cfa72ed844d44")


def test_transformers_loads_it(tiny_directory):
    model = load_model(tiny_directory, "float32")
    assert sum(parameter.numel() for parameter in model.parameters()) == 172_608
    assert json.loads((tiny_directory / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert load_tokenizer(tiny_directory).eos_token == "<|im_end|>"


@given(st.text(max_size=60))
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(("text", "tokens"), [(" please help me", 3), (" zebra", 6)])
def test_known_words_are_one_token(text, tokens):
    assert len(TOKENIZER(text)["input_ids"]) == tokens
