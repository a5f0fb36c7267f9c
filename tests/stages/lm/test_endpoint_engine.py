"""The endpoint engine against a real server that fails on purpose: whose fault it was decides what happens."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest

from graftline.stages.errors import AdapterMismatch, EndpointRefused, EngineFailed, PromptTooLong, RowFault
from graftline.stages.lm.endpoint import Endpoint
from graftline.stages.lm.endpoint_engine import EndpointEngine
from graftline.stages.lm.engine import Answer, Request
from graftline.stages.lm.pressure import Pressure

from ...fake_openai import FakeOpenAI
from .conftest import ask


class Hurried(Pressure):
    """A gate whose clock runs a thousand times faster than time, so that minutes pass in a moment."""

    def __init__(self, most: int = 8, patience: float = 300.0) -> None:
        began = time.monotonic()
        super().__init__(
            "fake",
            most,
            patience,
            clock=lambda: (time.monotonic() - began) * 1000,
            wait=lambda condition, seconds: condition.wait(seconds / 1000),
        )


def engine_of(fake: FakeOpenAI, pressure: Pressure | None = None, **fields: Any) -> EndpointEngine:
    endpoint = Endpoint("fake", url=fake.url, **{"concurrency": 8, "timeout": 5.0, **fields})
    return EndpointEngine(endpoint, {}, pressure or Hurried())


def many(count: int, **sampling: Any) -> list[Request]:
    return [ask(f"question {number}", id=f"r{number}", **sampling) for number in range(count)]


def back_after_the_first_refusal(fake: FakeOpenAI) -> None:
    def watch() -> None:
        while not fake.statuses[503]:
            time.sleep(0.01)
        time.sleep(0.2)
        fake.outage = False

    threading.Thread(target=watch, daemon=True).start()


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def test_answers_come_in_the_order_asked_and_cost_what_they_cost() -> None:
    told: list[str] = []
    with FakeOpenAI() as fake, engine_of(fake, price_in=10.0, price_out=100.0) as engine:
        answers = engine.generate(many(20), lambda answer: told.append(answer.id))
        assert [answer.id for answer in answers] == [f"r{number}" for number in range(20)]
        assert sorted(told) == sorted(answer.id for answer in answers)
        assert len(set(texts(answers))) == 20 and texts(engine.generate(many(20))) == texts(answers)
    first = answers[0]
    assert first.tokens_in == 2 and first.tokens_out == len(first.text.split())
    assert getattr(first, "money") == pytest.approx((20 + 100 * first.tokens_out) / 1e6)  # noqa: B009


def test_answers_that_are_not_told_yet_hold_further_requests_back() -> None:
    ahead: list[int] = []

    def told(answer: Answer) -> None:
        time.sleep(0.005)
        ahead.append(len(fake.log) - len(ahead))

    with FakeOpenAI() as fake, engine_of(fake, concurrency=4) as engine:
        engine.generate(many(40), told)
    assert len(ahead) == 40 and 1 <= max(ahead) <= 4


def test_faults_are_asked_again_and_change_no_answer() -> None:
    with FakeOpenAI() as fake, engine_of(fake) as engine:
        expected = texts(engine.generate(many(40)))
    with FakeOpenAI(p429=0.2, p500=0.2, bad_json=0.2) as fake, engine_of(fake, Hurried(patience=1e6)) as engine:
        assert texts(engine.generate(many(40))) == expected
        assert fake.statuses[429] and fake.statuses[500] and fake.statuses[200] > 40, "bad JSON has the status 200"


def test_what_is_sent() -> None:
    with FakeOpenAI() as fake, engine_of(fake) as engine:
        engine.generate([ask("hello", temperature=0.5, top_p=0.9, max_new_tokens=7, stop=("\n",), seed=2**40 + 3)])
        ((_, _, body),) = fake.log
    assert body == {
        "model": "fake", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5, "top_p": 0.9,
        "max_tokens": 7, "stop": ["\n"], "seed": 3,
    }  # fmt: skip


def test_a_presence_penalty_is_sent_where_there_is_one() -> None:
    with FakeOpenAI() as fake, engine_of(fake) as engine:
        engine.generate([ask("hello", presence=-1.5)])
        engine.generate([ask("hello", presence=0.0)])
        bodies = [body for _, _, body in fake.log]
    assert [body.get("presence_penalty", "none") for body in bodies] == [-1.5, "none"]


@pytest.mark.parametrize("prefix", ["ask", "continue", "mark"])
def test_a_begun_answer(prefix: Any) -> None:
    with FakeOpenAI(answer=lambda body: "1. yes and more\nnot this") as fake, engine_of(fake, prefix=prefix) as engine:
        (answer,) = engine.generate([ask("go", prefix="1. yes", stop=("\n",))])
        ((_, _, body),) = fake.log
    last = body["messages"][-1]
    if prefix == "ask":
        assert answer.text == " and more"
        assert last["role"] == "user" and last["content"].startswith("go") and last["content"].endswith("1. yes")
    else:
        assert answer.text == "1. yes and more" and last["role"] == "assistant" and last["content"] == "1. yes"
        assert last.get("prefix", False) == (prefix == "mark")
        assert body.get("continue_final_message", False) == (prefix == "continue")


def test_a_wrong_key_is_a_request_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_KEY", "sk-wrong")
    with FakeOpenAI(key="sk-right") as fake, engine_of(fake, key_env="FAKE_KEY") as engine:
        with pytest.raises(EndpointRefused, match="refuses the key in FAKE_KEY") as error:
            engine.generate(many(30))
        assert "sk-" not in str(error.value)
        assert fake.statuses[401] <= 8, "the others are not sent"


def test_an_unknown_model_is_a_request_error() -> None:
    with FakeOpenAI(models=("another",)) as fake, engine_of(fake) as engine:
        for _ in range(2):
            with pytest.raises(EndpointRefused, match="does not know this model"):
                engine.generate(many(3))


def test_an_outage_stops_and_what_was_answered_is_not_asked_again() -> None:
    """Ten minutes without an answer, by a hurried clock; afterwards the same requests go on where they were."""
    with FakeOpenAI() as fake:
        with engine_of(fake) as engine:
            before = texts(engine.generate(many(5)))
            fake.outage, fake.log = True, []
            with pytest.raises(EngineFailed, match=r"no answer for \d+ s \(503: the server is down\)"):
                engine.generate(many(12))
            assert 5 < fake.statuses[503] < 60, "one at a time tried"
            with pytest.raises(EngineFailed):
                engine.generate(many(1))
        fake.outage = False
        with engine_of(fake) as engine:
            assert texts(engine.generate(many(5))) == before


def test_what_was_in_flight_at_a_failure_is_told_too() -> None:
    """The others' answers were paid for: whoever keeps them hears of them before the error."""
    with FakeOpenAI() as fake, engine_of(fake) as engine:
        both, chat = threading.Barrier(4, timeout=5), fake._chat

        def broken(handler: Any, body: dict[str, Any], crowded: bool) -> tuple[int, Any]:
            both.wait()
            if body["messages"][0]["content"] == "question 0":
                return 404, {"error": "gone"}
            time.sleep(0.1)
            return chat(handler, body, crowded)

        fake._chat = broken  # type: ignore[method-assign]
        told: list[str] = []
        with pytest.raises(EndpointRefused):
            engine.generate(many(4), lambda answer: told.append(answer.id))
        assert sorted(told) == ["r1", "r2", "r3"]


def test_a_short_outage_is_waited_out() -> None:
    with FakeOpenAI(outage=True) as fake, engine_of(fake, Hurried(patience=100_000)) as engine:
        back_after_the_first_refusal(fake)
        assert len(engine.generate(many(10))) == 10
        assert fake.statuses[503] and fake.statuses[200] == 10


def test_a_server_that_is_not_there_stops() -> None:
    with FakeOpenAI() as fake:
        pass
    with engine_of(fake, Hurried(patience=50)) as engine, pytest.raises(EngineFailed, match="no connection"):
        engine.generate(many(2))


def test_retry_after_is_kept_to() -> None:
    """Real seconds: nothing is sent while the server wants to be left alone."""
    with FakeOpenAI(outage=True, retry_after="1") as fake:
        with engine_of(fake, Pressure("fake", 8, 60.0)) as engine:
            back_after_the_first_refusal(fake)
            engine.generate(many(6))
        refused = [at for at, status, _ in fake.log if status == 503]
        answered = [at for at, status, _ in fake.log if status == 200]
    assert len(refused) <= 4, "those in flight at first, and no more"
    assert min(answered) - max(refused) >= 0.95


def test_a_server_that_wants_an_hour_is_not_waited_for() -> None:
    with FakeOpenAI(outage=True, retry_after="3600") as fake, engine_of(fake, Pressure("fake", 8, 60.0)) as engine:
        began = time.monotonic()
        with pytest.raises(EngineFailed, match="come back in 3600 s"):
            engine.generate(many(3))
        assert time.monotonic() - began < 2


def test_no_more_at_once_than_the_server_takes() -> None:
    with FakeOpenAI(at_once=3, slow=0.01) as fake, engine_of(fake, Hurried(most=16), concurrency=16) as engine:
        assert len(engine.generate(many(60))) == 60
        assert 3 <= fake.most_at_once <= 10
        assert fake.statuses[429] < 60


def test_an_over_long_prompt_is_its_own_fault_and_the_others_are_paid_once() -> None:
    requests = [*many(6), ask("too long " * 50, id="long")]
    with FakeOpenAI(context=40) as fake, engine_of(fake) as engine:
        with pytest.raises(PromptTooLong, match="maximum context length"):
            engine.generate(requests)
        assert fake.statuses == {200: 6, 400: 1}
        assert len(engine.generate(requests[:6])) == 6
        assert fake.statuses == {200: 6, 400: 1}, "they were answered already"
        engine.generate(requests[:1])
        assert fake.statuses[200] == 7, "and only once"


def test_an_over_long_answer_is_said_to_be() -> None:
    with FakeOpenAI(over_long=True) as fake, engine_of(fake) as engine:
        (answer,) = engine.generate([ask("hello", max_new_tokens=5)])
    assert answer.finish == "length"


def test_a_server_that_counts_nothing_is_counted_for() -> None:
    with FakeOpenAI(counts=False) as fake, engine_of(fake) as engine:
        (answer,) = engine.generate([ask("hello")])
    assert answer.tokens_in > 0 and answer.tokens_out > 0


def test_one_request_that_always_fails_stops_in_the_end() -> None:
    with FakeOpenAI() as fake, engine_of(fake, Hurried(patience=1e9), retries=2) as engine:
        chat = fake._chat

        def poisoned(handler: Any, body: dict[str, Any], crowded: bool) -> tuple[int, Any]:
            if "poison" in body["messages"][0]["content"]:
                return 500, {"error": "oops"}
            return chat(handler, body, crowded)

        def others() -> None:
            with contextlib.suppress(EngineFailed):
                while True:
                    engine.generate(many(1))

        fake._chat = poisoned  # type: ignore[method-assign]
        beside = threading.Thread(target=others, daemon=True)
        beside.start()
        with pytest.raises(EngineFailed, match="failed 3 times at one request, last: 500: oops"):
            engine.generate([ask("poison", id="p")])
        engine.close()
        beside.join(5)


@pytest.mark.parametrize("status", [400, 422])
def test_another_refusal_is_the_rows_fault(status: int) -> None:
    with FakeOpenAI() as fake, engine_of(fake) as engine:
        fake._chat = lambda *arguments: (status, {"error": {"message": "odd role", "code": "x"}})  # type: ignore[method-assign]
        with pytest.raises(RowFault, match="odd role"):
            engine.generate(many(1))


def test_an_empty_account_stops() -> None:
    with FakeOpenAI() as fake, engine_of(fake) as engine:
        error = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
        fake._chat = lambda *arguments: (429, error)  # type: ignore[method-assign]
        with pytest.raises(EngineFailed, match="account is empty"):
            engine.generate(many(3))


def test_what_a_server_cannot_do_is_refused() -> None:
    with FakeOpenAI() as fake, engine_of(fake) as engine:
        for call in (lambda: engine.logprobs([()]), lambda: engine.choice_logprobs([()], [["a"]])):
            with pytest.raises(EndpointRefused, match="no log-probabilities"):
                call()
        with pytest.raises(AdapterMismatch):
            engine.generate([ask("x", adapter="one")])
        with pytest.raises(AdapterMismatch):
            engine.load_adapter("one", None)  # type: ignore[arg-type]
        assert fake.log == []


def test_streaming_cancelling_pausing_and_closing() -> None:
    with FakeOpenAI() as fake, engine_of(fake) as engine:
        stream = engine.stream(ask("hello"))
        pieces = []
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                assert "".join(pieces) == end.value.text != ""
                break
        engine.cancel("r0")
        assert engine.generate(many(2))[0].finish == "cancelled"
        with engine.pause():
            waiting = threading.Thread(target=lambda: engine.generate(many(1)), daemon=True)
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
        waiting.join(5)
        assert not waiting.is_alive()
    with pytest.raises(EngineFailed, match="closed"):
        engine.generate(many(1))
