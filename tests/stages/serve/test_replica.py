"""An engine behind Ray Serve, without Ray Serve: whole answers, streams, and clients that go away."""

import asyncio
import threading

import pytest

from graftline.stages.errors import EngineFailed, PromptTooLong
from graftline.stages.lm import tiny
from graftline.stages.lm.engine import Answer
from graftline.stages.serve.replica import MOST_FAILURES, EngineReplica

CALL = {
    "id": "1", "adapter": None, "messages": [{"role": "user", "content": "no signal"}], "temperature": 0.0,
    "top_p": 1.0, "max_new_tokens": 6, "stop": [], "seed": 0, "presence": 0.0,
}  # fmt: skip


@pytest.fixture
def replica(committed):
    base = committed("model", tiny.write)
    model = {"uri": base.uri, "digest": base.digest, "llm": {"model": "tiny", "engine": "scripted"}}
    return EngineReplica(model, {}, threads=1, concurrency=2)


class Engine:
    """Answers when it is let go; remembers who was cancelled."""

    def __init__(self):
        self.go, self.cancelled = threading.Event(), []

    def generate(self, requests, on_answer=None):
        self.go.wait(5)
        return [Answer(request.id, "late", "stop", 1, 1) for request in requests]

    def stream(self, request):
        yield "first"
        self.go.wait(5)
        return Answer(request.id, "first", "stop", 1, 1)

    def cancel(self, request_id):
        self.cancelled.append(request_id)
        self.go.set()


async def collect(stream):
    return [event async for event in stream]


def test_a_stream_says_what_an_answer_says(replica):
    answer = asyncio.run(replica.answer(CALL))
    events = asyncio.run(collect(replica.stream(CALL)))
    assert "".join(event.get("text", "") for event in events) == answer["text"] != ""
    assert events[-1] == {name: answer[name] for name in ("finish", "tokens_in", "tokens_out")}
    assert answer["tokens_in"] > 0


def test_what_is_asked_reaches_the_engine(replica):
    """The scripted engine's answers follow everything that a request says."""
    call = CALL | {"max_new_tokens": 30}
    others = [{"seed": 1}, {"temperature": 1.0}, {"top_p": 0.5}, {"presence": 2.0}]
    assert len({asyncio.run(replica.answer(call | other))["text"] for other in [{}, *others]}) == 5


def test_a_fault_of_the_request_comes_through_and_the_engine_is_well(replica):
    class Full(Engine):
        def generate(self, requests, on_answer=None):
            raise PromptTooLong("5000 tokens")

        def stream(self, request):
            raise PromptTooLong("5000 tokens")
            yield

    replica.engine = Full()
    for _ in range(MOST_FAILURES):
        with pytest.raises(PromptTooLong):
            asyncio.run(replica.answer(CALL))
        with pytest.raises(PromptTooLong):
            asyncio.run(collect(replica.stream(CALL)))
    assert asyncio.run(replica.health())


def test_a_client_that_goes_away_ends_its_request(replica):
    async def leave_answer():
        task = asyncio.create_task(replica.answer(CALL | {"id": "answer"}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def leave_stream():
        stream = replica.stream(CALL | {"id": "stream"})
        assert await anext(stream) == {"text": "first"}
        await stream.aclose()

    for leave, id in ((leave_answer, "answer"), (leave_stream, "stream")):
        replica.engine = Engine()
        asyncio.run(leave())
        assert replica.engine.cancelled == [id]


def test_requests_are_asked_side_by_side(replica):
    """Both are inside the engine at once, so that it can put them into one batch."""

    class Both(Engine):
        barrier = threading.Barrier(2, timeout=5)

        def generate(self, requests, on_answer=None):
            self.barrier.wait()
            return [Answer(request.id, request.id, "stop", 1, 1) for request in requests]

    async def two():
        return await asyncio.gather(replica.answer(CALL), replica.answer(CALL | {"id": "2"}))

    replica.engine = Both()
    assert [answer["text"] for answer in asyncio.run(two())] == ["1", "2"]


def test_an_engine_that_keeps_dying_is_not_healthy(replica):
    class Dying(Engine):
        def generate(self, requests, on_answer=None):
            raise EngineFailed("died")

    works, replica.engine = replica.engine, Dying()
    for _ in range(MOST_FAILURES):
        assert asyncio.run(replica.health())
        with pytest.raises(EngineFailed, match="died"):
            asyncio.run(replica.answer(CALL))
    with pytest.raises(EngineFailed, match="in a row"):
        replica.check_health()
    replica.engine = works
    asyncio.run(replica.answer(CALL))
    assert asyncio.run(replica.health())


def test_another_models_artefact_is_refused(committed):
    base = committed("model", tiny.write)
    with pytest.raises(EngineFailed, match="has the digest"):
        EngineReplica({"uri": base.uri, "digest": "0" * 64, "llm": {"model": "tiny"}}, {}, 1, 1)
