"""The engine a model asks for is the one that is opened; models continuous batching cannot run answer all the same."""

import pytest
from transformers import LlamaConfig, MistralConfig

from graftline.stages.errors import EngineFailed, ModelNotFound
from graftline.stages.lm import local
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.open import open_engine

from .conftest import ask


@pytest.mark.parametrize(
    ("engine", "kind"), [("local", "LocalEngine"), ("generate", "PlainEngine"), ("scripted", "ScriptedEngine")]
)
def test_every_engine_answers(tiny_directory, engine, kind):
    with open_engine(Llm("tiny", engine=engine), tiny_directory) as opened:
        assert type(opened).__name__ == kind
        (answer,) = opened.generate([ask("hello", max_new_tokens=3)])
        assert answer.id == "r" and answer.tokens_out >= 1


def test_a_model_that_cannot_batch_continuously_generates_plainly(tiny_directory, monkeypatch):
    monkeypatch.setattr(local, "unusable", lambda model: "it cannot")
    with open_engine(Llm("tiny"), tiny_directory) as opened:
        assert type(opened).__name__ == "PlainEngine"
        assert opened.generate([ask("hello", max_new_tokens=3)])


def test_what_makes_a_model_unusable(tiny_directory):
    with open_engine(Llm("tiny"), tiny_directory) as opened:
        model = opened.loaded.model
    assert local.unusable(model) == ""
    model.config.layer_types = ["linear_attention"] * 2
    assert "linear_attention" in local.unusable(model)
    model.config.layer_types = None
    model.config.attn_logit_softcapping = 30.0
    assert "attention logits" in local.unusable(model)


def test_windows_are_left_to_transformers():
    assert local.attends_to_all(LlamaConfig())
    assert not local.attends_to_all(MistralConfig(sliding_window=128))


def test_no_directory_is_an_error(tmp_path):
    with pytest.raises(EngineFailed, match="needs the model's directory"):
        open_engine(Llm("tiny"), None)
    with pytest.raises(ModelNotFound):
        open_engine(Llm("tiny"), tmp_path)
