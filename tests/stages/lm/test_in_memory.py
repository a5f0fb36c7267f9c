"""A loaded model knows its context, its ends of turn and its adapters, and draws as requests say."""

import json
import shutil

import pytest

from graftline.stages.errors import EngineFailed
from graftline.stages.lm.in_memory import Loaded
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.open import open_engine

from .conftest import QUESTIONS, ask


@pytest.fixture
def copy(tiny_directory, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(tiny_directory, target)
    return target


def change(file, **settings):
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_request_becomes_its_prompt_and_its_limits(tiny_directory):
    loaded = Loaded("tiny", tiny_directory, "float32", {})
    ids, turn = loaded.ask(ask("hello", max_new_tokens=7, prefix="Well"))
    assert loaded.tokenizer.decode(ids).endswith("hello<|im_end|>\n<|im_start|>assistant\nWell")
    assert (turn.prompt, turn.limit, turn.ends) == (len(ids), 7, (2,))
    assert loaded.ask(ask("hello", max_new_tokens=50), room=len(ids))[1].limit < 50


def test_every_end_of_turn_ends_an_answer(copy):
    """Models list several (an end of turn and an end of text); the tokenizer's own comes first."""
    change(copy / "generation_config.json", eos_token_id=[0, 2, 300])
    assert Loaded("tiny", copy, "float32", {}).ends == (2, 0, 300)


def test_a_model_that_ends_no_turn_is_refused(copy):
    for file in ("generation_config.json", "config.json"):
        change(copy / file, eos_token_id=None)
    change(copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(EngineFailed, match="tiny: the model has no end-of-turn token"):
        Loaded("tiny", copy, "float32", {})


@pytest.mark.parametrize("engine", ["local", "generate"])
def test_a_models_own_sampling_settings_do_not_matter(copy, tiny_directory, engine):
    """A repetition penalty in its directory would change one engine's answers and not the other's."""
    change(copy / "generation_config.json", do_sample=True, temperature=3.0, top_k=1, repetition_penalty=5.0)
    requests = [ask(text, f"r{index}", max_new_tokens=20) for index, text in enumerate(QUESTIONS)]
    answers = []
    for directory in (copy, tiny_directory):
        with open_engine(Llm("tiny", dtype="float32", engine=engine), directory) as opened:
            answers.append(opened.generate(requests))
    assert answers[0] == answers[1]
