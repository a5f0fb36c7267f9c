"""Plain generation answers as the local engine does: the same tokens, adapters, stops and seeds."""

import threading
from dataclasses import replace

import pytest

from graftline.stages.errors import EngineFailed
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.open import open_engine
from graftline.stages.lm.plain import BATCH_ROWS, PlainEngine

from .conftest import QUESTIONS, ask


def open_tiny(directory, adapters, engine):
    return open_engine(Llm("tiny", dtype="float32", engine=engine), directory, adapters)


@pytest.fixture(scope="module")
def engine(tiny_directory, two_adapters):
    with open_tiny(tiny_directory, two_adapters, "generate") as opened:
        assert isinstance(opened, PlainEngine)
        yield opened


@pytest.fixture(scope="module")
def local(tiny_directory, two_adapters):
    with open_tiny(tiny_directory, two_adapters, "local") as opened:
        yield opened


def requests(**sampling):
    names = (None, "one", "two")
    return [
        ask(text, f"r{i}", names[i % 3], max_new_tokens=9 + i, seed=i, **sampling) for i, text in enumerate(QUESTIONS)
    ]


def test_greedy_equals_continuous_batching(engine, local):
    assert engine.generate(requests()) == local.generate(requests())


def test_sampled_equals_continuous_batching(engine, local):
    asked = requests(temperature=1.0, top_p=0.9)
    assert engine.generate(asked) == local.generate(asked)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_presence_penalty_equals_continuous_batching(engine, local, temperature):
    asked = requests(temperature=temperature, presence=2.0)
    found = engine.generate(asked)
    assert found == local.generate(asked)
    assert [each.text for each in found] != [each.text for each in engine.generate(requests(temperature=temperature))]


def test_stop_texts_equal_continuous_batching(engine, local):
    whole = local.generate([ask(QUESTIONS[0], max_new_tokens=30)])[0].text
    asked = [ask(QUESTIONS[0], max_new_tokens=30, stop=(whole[5:8],)), ask(QUESTIONS[1], max_new_tokens=30)]
    found = engine.generate(asked)
    assert found == local.generate(asked)
    assert found[0].text == whole[: whole.index(whole[5:8])]


def test_log_probabilities_equal_the_local_engines(engine, local):
    prompts, choices = [each.messages for each in requests()], [["yes", "no way"]] * len(QUESTIONS)
    for adapter in (None, "two"):
        expected = local.choice_logprobs(prompts, choices, adapter)
        for found, values in zip(engine.choice_logprobs(prompts, choices, adapter), expected, strict=True):
            assert found == pytest.approx(values, abs=1e-4)


def test_more_rows_than_a_batch_keep_their_order(engine):
    asked = [ask(QUESTIONS[index % 6], f"r{index}", max_new_tokens=2) for index in range(BATCH_ROWS + 3)]
    heard = []
    answers = engine.generate(asked, heard.append)
    assert [each.id for each in answers] == [each.id for each in asked]
    assert sorted(each.id for each in heard) == sorted(each.id for each in asked)


def test_a_stream_is_the_answer_in_pieces(engine):
    request = ask(QUESTIONS[0], max_new_tokens=25, temperature=1.0, seed=3)
    stream, pieces = engine.stream(request), []
    with pytest.raises(StopIteration) as end:
        while True:
            pieces.append(next(stream))
    assert end.value.value == engine.generate([request])[0]
    assert "".join(pieces) == end.value.value.text and len(pieces) > 3


def test_cancelling_ends_a_batch_early(engine):
    asked = [ask(QUESTIONS[0], "endless", max_new_tokens=3000), ask("hello", "short", max_new_tokens=3)]
    threading.Timer(0.4, engine.cancel, ("endless",)).start()
    answers = engine.generate(asked)
    assert (answers[0].finish, answers[1].finish) == ("cancelled", "length")
    assert 0 < answers[0].tokens_out < 3000


def test_a_failing_pass_is_an_engine_failure(engine, monkeypatch):
    def fail(*arguments, **named):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.loaded.model, "generate", fail)
    with pytest.raises(EngineFailed, match="out of memory"):
        engine.generate([ask("hello")])
    with pytest.raises(EngineFailed, match="out of memory"):
        list(engine.stream(ask("hello")))
    monkeypatch.undo()
    assert engine.generate([ask("hello")])[0].tokens_out > 0


def test_an_adapter_is_not_left_behind(engine):
    """After a failed or a finished batch the base answers as before."""
    request = requests()[1]
    base = engine.generate([replace(request, adapter=None)])
    engine.generate([request])
    assert engine.generate([replace(request, adapter=None)]) == base


def test_a_closed_engine_says_so(tiny_directory):
    engine = open_tiny(tiny_directory, {}, "generate")
    engine.close()
    with pytest.raises(EngineFailed, match="is closed"):
        engine.generate([ask("hello")])


def test_streams_side_by_side_end_whole(engine):
    """What is in flight is kept by request, whoever comes and goes meanwhile."""
    wanted = engine.generate([ask(QUESTIONS[0], max_new_tokens=6)])[0].text
    texts: list[str] = []

    def stream(number):
        pieces = engine.stream(ask(QUESTIONS[0], f"s{number}", max_new_tokens=6))
        texts.append("".join(pieces))

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        engine.generate([ask(QUESTIONS[1], max_new_tokens=2)])
    for thread in threads:
        thread.join()
    assert texts == [wanted] * 4 and engine._asked == {}
