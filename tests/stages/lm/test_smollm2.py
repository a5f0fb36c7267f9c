"""The built-in model: downloaded (or from the cache), converted, and always the same."""

import json

import pytest

from graftline.stages.lm.load import load_tokenizer, model_digest, tensors_header

pytestmark = pytest.mark.real


def test_every_tensor_is_as_the_files_numbers_say(smollm2_directory):
    assert model_digest(smollm2_directory) == "144c4f6518e28433a9993f00051d7758725abb4934905beaa3006046436e0ce5"
    header, _ = tensors_header(smollm2_directory / "model.safetensors")
    assert {entry["dtype"] for entry in header.values()} == {"F32"} and "lm_head.weight" not in header


def test_its_directory_is_a_clean_one(smollm2_directory):
    config = json.loads((smollm2_directory / "config.json").read_text())
    assert "quantization_config" not in config and "_model_name_or_path" not in config
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float32"
    assert not list(smollm2_directory.glob("*.gguf")) and not list(smollm2_directory.glob("*.whl"))


def test_every_digit_is_a_token(smollm2_directory):
    tokenizer = load_tokenizer(smollm2_directory)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("order  1234", add_special_tokens=False)]
    assert pieces[-4:] == ["1", "2", "3", "4"]
