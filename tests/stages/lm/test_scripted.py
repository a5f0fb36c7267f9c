"""Scripted answers are a pure function of the request; log-probabilities are real."""

import re
import subprocess
import sys

import pytest

from graftline.stages.errors import AdapterMismatch, EngineFailed
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.load import model_digest
from graftline.stages.lm.open import open_engine
from graftline.stages.lm.scripted import sentence

from .conftest import ask


@pytest.fixture
def engine(tiny_directory, two_adapters):
    with open_engine(Llm("tiny", engine="scripted"), tiny_directory, two_adapters) as opened:
        yield opened


def test_the_same_request_has_the_same_answer_whoever_else_asks(engine):
    requests = [ask(f"question {index}", f"r{index}") for index in range(20)]
    together = engine.generate(requests)
    assert [engine.generate([each])[0] for each in requests] == together
    assert len({each.text for each in together}) == 20


def test_it_is_the_same_in_every_process():
    """An answer is kept here in words: a change to it changes every scripted result."""
    assert open_engine(Llm("tiny", engine="scripted"), None).generate([ask("where is my order?")])[0].text == (
        "Since the update the invoice arrived broken so a colleague is still open while the screen is still open"
        " and the meeting looks different now?"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"temperature": 0.5},
        {"adapter": "one"},
        {"prefix": "Well,"},
        {"max_new_tokens": 63},
        {"presence": 2.0},
    ],
    ids=lambda other: next(iter(other)),
)
def test_everything_asked_for_matters(engine, other):
    assert engine.generate([ask("hello", **other)])[0].text != engine.generate([ask("hello")])[0].text


def test_the_id_does_not_matter(engine):
    assert engine.generate([ask("hello", "a")])[0].text == engine.generate([ask("hello", "b")])[0].text


def test_answers_are_short_sentences():
    for seed in range(500):
        text = sentence(seed)
        assert 8 <= len(text.split()) <= 25
        assert re.fullmatch(r"[A-Z][a-z ]+[.!?]", text)


def test_limits_and_stop_texts_hold(engine):
    whole = engine.generate([ask("hello")])[0]
    assert (whole.finish, whole.tokens_out) == ("stop", len(whole.text.split()) + 1)
    short = engine.generate([ask("hello", max_new_tokens=3)])[0]
    assert (short.finish, short.tokens_out, len(short.text.split())) == ("length", 3, 3)
    stopped = engine.generate([ask("hello", stop=(" ",))])[0]
    assert (stopped.finish, len(stopped.text.split())) == ("stop", 1)


def test_a_stream_is_the_answer_in_words(engine):
    stream, pieces = engine.stream(ask("hello")), []
    with pytest.raises(StopIteration) as end:
        while True:
            pieces.append(next(stream))
    assert "".join(pieces) == end.value.value.text == engine.generate([ask("hello")])[0].text
    assert len(pieces) >= 8


def test_a_cancelled_stream_ends(engine):
    stream = engine.stream(ask("hello"))
    first = next(stream)
    engine.cancel("r")
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert (end.value.value.text, end.value.value.finish) == (first, "cancelled")


def test_log_probabilities_are_the_weights(engine, tiny_directory):
    prompts, choices = [ask("hello").messages], [["yes", "no way"]]
    with open_engine(Llm("tiny", dtype="float32"), tiny_directory, engine.adapters) as real:
        for adapter in (None, "one"):
            expected = real.choice_logprobs(prompts, choices, adapter)[0]
            assert engine.choice_logprobs(prompts, choices, adapter)[0] == pytest.approx(expected, abs=1e-4)
    with open_engine(Llm("tiny", engine="scripted"), None) as alone:
        assert alone.choice_logprobs(prompts, choices) == engine.choice_logprobs(prompts, choices)


def test_adapters_are_known_by_name_and_belong_to_the_base(engine, make_adapter, tiny_directory):
    assert engine.digest == model_digest(tiny_directory)
    assert engine.reproducible and engine.why == ""
    with pytest.raises(AdapterMismatch, match="no adapter 'new' is loaded"):
        engine.generate([ask("hello", adapter="new")])
    engine.load_adapter("new", make_adapter(1, 4))
    engine.generate([ask("hello", adapter="new")])
    engine.unload_adapter("new")
    with pytest.raises(AdapterMismatch):
        engine.generate([ask("hello", adapter="new")])
    with pytest.raises(AdapterMismatch, match="made for tiny with the weights 0000"):
        engine.load_adapter("other", make_adapter(1, 4, base="0" * 64))


def test_a_closed_engine_says_so(engine):
    engine.close()
    with pytest.raises(EngineFailed, match="is closed"):
        engine.generate([ask("hello")])


@pytest.mark.real
def test_answering_needs_no_torch():
    program = (
        "import sys\nfrom graftline.stages.lm.llm import Llm\nfrom graftline.stages.lm.open import open_engine\n"
        "from graftline.stages.lm.engine import Request\n"
        "request = Request('r', ({'role': 'user', 'content': 'x'},))\n"
        "open_engine(Llm('tiny', engine='scripted'), None).generate([request])\n"
        "print(*{'torch', 'transformers', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
