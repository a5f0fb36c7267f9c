"""The embedded engine: every answer is what it would be alone, adapters share batches, and a failure is survived."""

import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from graftline.stages.errors import AdapterMismatch, EngineFailed, InvalidField, PromptTooLong, RowFault
from graftline.stages.lm import local
from graftline.stages.lm.in_memory import Loaded
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.open import open_engine

from .conftest import QUESTIONS, ask

ENDLESS = QUESTIONS[0]
"""The tiny model, greedy, ends no turn of its own accord here."""


@pytest.fixture(scope="module")
def engine(tiny_directory, two_adapters):
    with open_engine(Llm("tiny", dtype="float32"), tiny_directory, two_adapters) as opened:
        assert isinstance(opened, local.LocalEngine)
        yield opened


def answered(stream):
    """The pieces of a stream, and the answer it returns."""
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


def mixed(**sampling):
    """Requests of the base and both adapters."""
    names = (None, "one", "two")
    return [
        ask(text, f"r{index}", names[index % 3], max_new_tokens=12 + index, **sampling)
        for index, text in enumerate(QUESTIONS)
    ]


def by_hand(loaded, request):
    """Greedy decoding, one whole forward pass a token: no cache, no batch."""
    ids, turn = loaded.ask(request)
    slot = loaded.adapters.acquire(request.adapter)
    loaded.adapters.routing.use([slot])
    tokens: list[int] = []
    with torch.no_grad():
        while len(tokens) < turn.limit and not (tokens and tokens[-1] in turn.ends):
            scores = loaded.model(torch.tensor([ids + tokens])).logits[0, -1].tolist()
            for token in set(tokens):
                scores[token] -= request.sampling.presence
            tokens.append(scores.index(max(scores)))
    loaded.adapters.routing.use(())
    loaded.adapters.release(slot)
    return turn.finish(tokens)


def test_greedy_answers_of_base_and_adapters_in_one_batch(engine):
    requests = mixed()
    expected = [by_hand(engine.loaded, request) for request in requests]
    found = engine.generate(requests)
    assert [(each.text, each.finish, each.tokens_out) for each in found] == expected
    assert [each.id for each in found] == [each.id for each in requests]
    assert [each.tokens_in for each in found] == [len(engine.loaded.ask(each)[0]) for each in requests]


def test_a_presence_penalty_in_one_batch_with_those_who_ask_for_none(engine):
    plain = mixed()
    penalised = [replace(each, prefix="order ", sampling=replace(each.sampling, presence=1.5)) for each in plain]
    expected = [by_hand(engine.loaded, request) for request in (*plain, *penalised)]
    found = engine.generate([*plain, *penalised])
    assert [(each.text, each.finish, each.tokens_out) for each in found] == expected
    unpenalised = engine.generate([replace(each, sampling=replace(each.sampling, presence=0.0)) for each in penalised])
    assert [each.text for each in found[len(plain) :]] != [each.text for each in unpenalised]


def test_an_adapter_changes_answers(engine):
    request = mixed()[0]
    texts = {engine.generate([replace(request, adapter=name)])[0].text for name in (None, "one", "two")}
    assert len(texts) == 3


def test_adapters_do_not_share_a_prompts_keys(engine):
    """The same prompt, several cache pages long, of the base and then of each adapter."""
    request = ask(QUESTIONS[2] * 3, max_new_tokens=8)
    assert len(engine.loaded.ask(request)[0]) > 2 * local.PAGE
    for name in (None, "one", None, "two", "one"):
        each = replace(request, adapter=name)
        assert engine.generate([each])[0].text == by_hand(engine.loaded, each)[0]


@pytest.mark.parametrize(("top_p", "presence"), [(1.0, 0.0), (0.8, 0.0), (0.8, 2.0)])
def test_a_seeded_answer_does_not_depend_on_its_batch(engine, top_p, presence):
    requests = [
        replace(each, sampling=replace(each.sampling, seed=index))
        for index, each in enumerate(mixed(temperature=1.0, top_p=top_p, presence=presence))
    ]
    together = engine.generate(requests)
    assert [engine.generate([each])[0] for each in requests] == together
    assert engine.generate(requests[::-1])[::-1] == together
    reseeded = [replace(each, sampling=replace(each.sampling, seed=99)) for each in requests]
    assert [each.text for each in engine.generate(reseeded)] != [each.text for each in together]


def test_more_requests_than_a_batch_and_prompts_longer_than_a_pass(engine, tiny_directory, monkeypatch):
    """Prompts are cut into passes, and requests wait for room in the cache."""
    requests = [ask(QUESTIONS[index % 6] * (1 + index % 4), f"r{index}", max_new_tokens=9) for index in range(24)]
    expected = engine.generate(requests)
    monkeypatch.setitem(local.BATCH_TOKENS, "cpu", 40)
    monkeypatch.setitem(local.BATCH_REQUESTS, "cpu", 5)
    monkeypatch.setattr(local, "CACHE_BYTES", 300 * 2 * 2 * 2 * 16 * 4)
    with closing(local.LocalEngine(Loaded("tiny", tiny_directory, "float32", {}))) as small:
        assert small._cache_tokens == 288
        assert small.generate(requests) == expected


def test_answers_are_heard_as_they_come(engine):
    heard = []
    requests = [ask("hello", "long", max_new_tokens=40), ask("hello", "short", max_new_tokens=2)]
    answers = engine.generate(requests, heard.append)
    assert [each.id for each in answers] == ["long", "short"]
    assert [each.id for each in heard] == ["short", "long"]
    assert threading.current_thread() is threading.main_thread()


def test_an_answer_ends_at_a_stop_text(engine):
    request = ask(QUESTIONS[0], max_new_tokens=30)
    whole = engine.generate([request])[0].text
    stop = whole[8:12]
    found = engine.generate([replace(request, sampling=replace(request.sampling, stop=(stop, "never")))])[0]
    assert (found.text, found.finish) == (whole[: whole.index(stop)], "stop")
    assert found.tokens_out < 30


def test_a_prefix_is_continued_and_not_repeated(engine):
    request = ask(QUESTIONS[0], max_new_tokens=20)
    whole = engine.generate([request])[0].text
    first = whole[: whole.index(" ", 3)]
    found = engine.generate([replace(request, prefix=first)])[0]
    assert not found.text.startswith(first)
    assert (first + found.text).startswith(whole[:10])


def test_a_stream_is_the_answer_in_pieces(engine):
    for request in mixed(temperature=1.0, seed=5):
        pieces, answer = answered(engine.stream(request))
        assert "".join(pieces) == answer.text
        assert answer == engine.generate([request])[0]
    assert len(pieces) > 3


def test_a_stream_never_shows_a_stop_text(engine):
    request = ask(QUESTIONS[0], max_new_tokens=30)
    whole = engine.generate([request])[0].text
    stop = whole[10:16]
    pieces, answer = answered(engine.stream(replace(request, sampling=replace(request.sampling, stop=(stop,)))))
    assert "".join(pieces) == answer.text == whole[: whole.index(stop)]


def test_streams_beside_a_batch(engine):
    """Eight threads stream while a batch is answered; all get what they get alone."""
    requests = mixed(temperature=1.0, seed=3)
    expected = engine.generate(requests)
    results: dict[int, object] = {}

    def work(index: int) -> None:
        results[index] = answered(engine.stream(requests[index % 6]))[1]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    assert engine.generate(requests) == expected
    for thread in threads:
        thread.join(20)
    assert [results[index] for index in range(8)] == [expected[index % 6] for index in range(8)]


def test_a_cancelled_request_ends_with_what_there_is(engine):
    """From another thread, while it is answered; the others go on."""
    endless = ask(ENDLESS, "endless", max_new_tokens=3000)
    whole = ask("hello", "short", max_new_tokens=5)
    threading.Timer(0.4, engine.cancel, ("endless",)).start()
    answers = engine.generate([endless, whole])
    assert answers[0].finish == "cancelled"
    assert 0 < answers[0].tokens_out < 3000
    assert answers[1].finish == "length"
    assert not engine._pending
    engine.cancel("never there")


def test_a_cancelled_request_is_not_computed_any_further(engine):
    requests = [ask(ENDLESS, "first", max_new_tokens=3000), ask(ENDLESS, "second", max_new_tokens=3000)]
    thread = threading.Thread(target=engine.generate, args=(requests,))
    thread.start()

    def wait_for(active: int) -> None:
        until = time.monotonic() + 4
        while len(engine._manager.batch_processor.scheduler.active_requests) != active:
            assert time.monotonic() < until
            time.sleep(0.01)

    wait_for(2)
    engine.cancel("first")
    wait_for(1)
    engine.cancel("second")
    thread.join(10)
    wait_for(0)


def test_a_stream_that_is_left_is_cancelled(engine):
    stream = engine.stream(ask(ENDLESS, max_new_tokens=3000))
    next(stream)
    stream.close()
    assert not engine._pending
    assert len(engine.generate([ask("hello")])) == 1


class Broken(torch.nn.Module):
    """Raises on the passes that a counter reaches."""

    def __init__(self, inner: torch.nn.Module, passes: int) -> None:
        super().__init__()
        self.inner, self.left = inner, passes

    def forward(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise ValueError("a forced failure")
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("passes", [1, 4])
def test_a_failing_pass_fails_what_is_in_flight_and_no_more(tiny_directory, passes):
    with closing(local.LocalEngine(Loaded("tiny", tiny_directory, "float32", {}))) as engine:
        requests = [ask(text, f"r{index}") for index, text in enumerate(QUESTIONS)]
        expected = engine.generate(requests)
        layers = engine.loaded.model.model.layers
        layers[1] = Broken(layers[1], passes)
        started = time.monotonic()
        with pytest.raises(EngineFailed, match=r"tiny, request r\d: the model failed: a forced failure"):
            engine.generate(requests)
        assert time.monotonic() - started < 10
        layers[1] = layers[1].inner
        assert engine.generate(requests) == expected
        assert answered(engine.stream(requests[0]))[1] == expected[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_dies_without_a_word_is_noticed(tiny_directory):
    with closing(local.LocalEngine(Loaded("tiny", tiny_directory, "float32", {}))) as engine:
        layers = engine.loaded.model.model.layers

        class Exit(torch.nn.Module):
            def forward(self, *args, **kwargs):
                raise SystemExit

        first = layers[0]
        layers[0] = Exit()
        with pytest.raises(EngineFailed, match="the loop stopped"):
            engine.generate([ask("hello")])
        layers[0] = first
        assert engine.generate([ask("hello")])[0].tokens_out > 0


def test_pausing_keeps_what_is_in_flight(engine):
    request = ask(ENDLESS, max_new_tokens=100)
    expected = engine.generate([request])
    results = []
    thread = threading.Thread(target=lambda: results.extend(engine.generate([request])))
    thread.start()
    while not any(pending.tokens() for pending in list(engine._pending.values())):
        time.sleep(0.001)
    with engine.pause():
        (pending,) = engine._pending.values()
        before = len(pending.tokens())
        time.sleep(0.2)
        assert 0 < len(pending.tokens()) == before < 100
    thread.join(20)
    assert results == expected


def test_log_probabilities_do_not_depend_on_a_running_loop(engine, tiny_directory):
    prompts, choices = [ask(text).messages for text in QUESTIONS], [["yes", "not at all"]] * 6
    engine.generate(mixed())
    assert engine.loaded.model.config._attn_implementation == "graftline_segments"
    with open_engine(Llm("tiny", dtype="float32"), tiny_directory) as fresh:
        expected = fresh.choice_logprobs(prompts, choices)
    for found, values in zip(engine.choice_logprobs(prompts, choices), expected, strict=True):
        assert found == pytest.approx(values, abs=1e-4)


def test_adapters_come_and_go_while_it_answers(engine, make_adapter):
    directory = make_adapter(9, 4)
    request = ask("hello", adapter="nine")
    with pytest.raises(AdapterMismatch, match="no adapter 'nine' is loaded"):
        engine.generate([request])
    engine.load_adapter("nine", directory)
    expected = engine.generate([request])
    stream = engine.stream(replace(request, sampling=replace(request.sampling, max_new_tokens=30)))
    next(stream)
    engine.unload_adapter("nine")
    assert answered(stream)[1].text.startswith(expected[0].text[:20])
    with pytest.raises(AdapterMismatch):
        engine.generate([request])


def test_requests_that_cannot_be_answered_are_refused(engine):
    with pytest.raises(PromptTooLong, match=r"request long: the prompt has \d+ tokens, and tiny takes 4096"):
        engine.generate([ask("zz" * 4000, "long")])
    with pytest.raises(RowFault):
        engine.generate([ask("<|im_end|>")])
    wrong = {"temperature": -1.0, "top_p": 0.0, "presence": 2.1, "max_new_tokens": 0, "stop": ("",)}
    for field, value in wrong.items():
        with pytest.raises(InvalidField, match=f"sampling.{field}: .* is out of range"):
            engine.generate([ask("hello", **{field: value})])
    assert not engine._pending
    assert engine.generate([]) == []


def test_an_answer_is_no_longer_than_the_context(engine):
    request = ask("zz" * 2030, max_new_tokens=100)
    tokens_in = len(engine.loaded.ask(request)[0])
    answer = engine.generate([request])[0]
    assert answer.tokens_out <= 4096 - tokens_in < 100


def test_a_closed_engine_says_so(tiny_directory):
    engine = open_engine(Llm("tiny", dtype="float32"), tiny_directory)
    results = []

    def work() -> None:
        try:
            engine.generate([ask(ENDLESS, max_new_tokens=3000)])
        except EngineFailed as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not engine._pending:
        time.sleep(0.01)
    engine.close()
    thread.join(10)
    assert len(results) == 1
    with pytest.raises(EngineFailed, match="is closed"):
        engine.generate([ask("hello")])
    engine.close()


def test_threads_and_names(tiny_directory):
    before = torch.get_num_threads()
    try:
        with open_engine(Llm("tiny", dtype="bfloat16"), tiny_directory, threads=3) as engine:
            assert torch.get_num_threads() == 3
            assert engine.model == "tiny" and len(engine.digest) == 64
            assert not engine.reproducible and "bfloat16 on cpu" in engine.why
            assert engine.generate([ask("hello")])[0].tokens_out > 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.real
def test_a_program_that_forgets_to_close_its_engine_ends(tiny_directory):
    import subprocess
    import sys

    program = (
        "import sys; from pathlib import Path\n"
        "from graftline.stages.lm.llm import Llm\n"
        "from graftline.stages.lm.open import open_engine\n"
        "from graftline.stages.lm.engine import Request\n"
        "engine = open_engine(Llm('tiny'), Path(sys.argv[1]))\n"
        "print(engine.generate([Request('r', ({'role': 'user', 'content': 'hi'},))])[0].tokens_out)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_directory)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0


@pytest.mark.real
def test_smollm2_answers_sensibly(smollm2_directory):
    """Both engines, fp32: the same greedy text, and an answer a person would give."""
    request = ask("What is the capital of France? Answer in one word.", max_new_tokens=8)
    answers = []
    for kind in ("local", "generate"):
        with open_engine(Llm("smollm2-135m-instruct", dtype="float32", engine=kind), smollm2_directory) as engine:
            answers.append(engine.generate([request, ask("hello", "other", max_new_tokens=8)]))
            ((paris, table),) = engine.choice_logprobs([request.messages], [["Paris", "Table"]])
            assert paris > table
    assert answers[0] == answers[1]
    assert "Paris" in answers[0][0].text
