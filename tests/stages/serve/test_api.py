"""The gateway over HTTP: OpenAI's shapes, for answers and for errors."""

import asyncio
import json

import openai
import pytest
from fastapi.testclient import TestClient
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from graftline.stages.errors import AdapterMismatch, EngineFailed, PromptTooLong, RowFault
from graftline.stages.serve.api import create_api, side_by_side
from graftline.stages.serve.chat import Served

MODELS = [
    Served("base", "engine", None, "tiny", "b" * 64),
    Served("tickets", "engine", "tickets", "tickets", "a" * 64, "base"),
    Served("full", "engine-full", None, "full", "f" * 64),
]
ASK = {"model": "tickets", "messages": [{"role": "user", "content": "no signal"}]}
ANSWER = {"text": "mobile data", "finish": "stop", "tokens_in": 5, "tokens_out": 2}


@pytest.fixture
def service(handle):
    """A client, with the handles of both engines; every answer is `answered(call)`."""

    def make(answered=lambda call: ANSWER):
        handles = {"engine": handle(answered), "engine-full": handle(answered)}
        return TestClient(create_api(MODELS, handles), raise_server_exceptions=False), handles

    return make


def test_models(service):
    client, _ = service()
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(model["id"], model["root"], model["parent"]) for model in listed["data"]] == [
        ("base", "tiny", None), ("tickets", "tickets", "base"), ("full", "full", None),
    ]  # fmt: skip
    assert client.get("/v1/models/tickets").json() == listed["data"][1]
    assert client.get("/v1/models/nobody").status_code == 404


def test_an_answer(service):
    client, handles = service()
    reply = client.post("/v1/chat/completions", json=ASK | {"max_tokens": 4})
    assert reply.status_code == 200
    said = reply.json()
    assert said["object"] == "chat.completion"
    assert said["model"] == "tickets"
    assert said["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "mobile data", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert said["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert said["system_fingerprint"] == "a" * 16
    assert handles["engine"].calls[0]["adapter"] == "tickets"


def test_ids_go_to_their_engine_and_adapter(service):
    client, handles = service()
    for id in ("base", "tickets", "full"):
        assert client.post("/v1/chat/completions", json=ASK | {"model": id}).status_code == 200
    assert [call["adapter"] for call in handles["engine"].calls] == [None, "tickets"]
    assert [call["adapter"] for call in handles["engine-full"].calls] == [None]


@pytest.mark.parametrize("id", ["nobody", "", "../base", "Base", "adapter"])
def test_an_unknown_model_is_404_and_never_answered_by_the_base(service, id):
    client, handles = service()
    reply = client.post("/v1/chat/completions", json=ASK | {"model": id})
    assert reply.status_code == 404
    assert reply.json()["error"] == {
        "message": f"The model {id!r} does not exist.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert handles["engine"].calls == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"temperature": 9}, "temperature"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"n": 99}, "n"),
        ({"tools": [{}]}, None),
    ],
)
def test_a_bad_request_is_400(service, body, param):
    client, handles = service()
    reply = client.post("/v1/chat/completions", json=ASK | body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(param or "")
    assert error["message"]
    assert handles["engine"].calls == []


def test_what_is_not_json_is_400(service):
    client, _ = service()
    reply = client.post("/v1/chat/completions", content=b"{no", headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_unknown_routes_have_the_shape_too(service):
    client, _ = service()
    for reply, status in ((client.get("/v1/nothing"), 404), (client.get("/v1/chat/completions"), 405)):
        assert reply.status_code == status
        assert reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PromptTooLong("the prompt has 5000 tokens, the context 4096"), 400, "context_length_exceeded"),
        (RowFault("contains the chat template's own <|im_end|>"), 400, None),
        (BackPressureError(65, 64, 429, 1.5), 429, "rate_limit_exceeded"),
        (EngineFailed("died at /secret/path"), 503, "engine_unavailable"),
        (ActorDiedError(), 503, "engine_unavailable"),
        (ZeroDivisionError("/secret/path"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_engine(service, error, status, code, stream):
    client, _ = service(lambda call: error)
    reply = client.post("/v1/chat/completions", json=ASK | {"stream": stream})
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == code
    assert "secret" not in reply.text
    if status == 429:
        assert reply.headers["retry-after"] == "2"


def test_errors_from_another_process_are_told_by_their_cause(service):
    from ray.exceptions import RayTaskError

    wrapped = RayTaskError("answer", "traceback", PromptTooLong("5000 tokens")).as_instanceof_cause()
    client, _ = service(lambda call: wrapped)
    reply = client.post("/v1/chat/completions", json=ASK)
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, "5000 tokens")


def test_health(service):
    client, _ = service()
    assert client.get("/health").json() == {"status": "ok"}
    client, _ = service(lambda call: EngineFailed("died"))
    assert client.get("/health").status_code == 503


def test_a_stream(service):
    client, _ = service()
    reply = client.post("/v1/chat/completions", json=ASK | {"stream": True, "stream_options": {"include_usage": True}})
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "mobile data "
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 7)


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(service, stream):
    client, handles = service(lambda call: ANSWER | {"text": f"drawn {call['seed']}"})
    asked = ASK | {"n": 3, "seed": 5}
    chat = openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0).chat
    if stream:
        texts, roles, finishes = dict.fromkeys(range(3), ""), set(), set()
        *pieces, counted = chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        for piece in pieces:
            (choice,) = piece.choices
            texts[choice.index] += choice.delta.content or ""
            roles |= {choice.index} if choice.delta.role == "assistant" else set()
            finishes |= {choice.index} if choice.finish_reason == "stop" else set()
        assert roles == finishes == {0, 1, 2}
        said = [texts[place].strip() for place in range(3)]
    else:
        counted = chat.completions.create(**asked)
        said = [choice.message.content for choice in counted.choices]
    assert said == ["drawn 5", "drawn 6", "drawn 7"]
    assert counted.usage.to_dict() == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert len({call["id"] for call in handles["engine"].calls}) == 3, "each can be cancelled alone"


def test_streams_go_side_by_side_and_end_together():
    closed = []

    async def steps():
        both = asyncio.Barrier(2)

        async def stream(name, fails=False):
            try:
                await asyncio.wait_for(both.wait(), 2)  # one after the other would never get past it
                yield {"text": name}
                await asyncio.wait_for(both.wait(), 2)
                if fails:
                    raise EngineFailed("died")
                await asyncio.sleep(0.01)
                yield {"finish": "stop"}
                if name == "left":
                    await asyncio.sleep(60)
            finally:
                closed.append(name)

        events = [each async for each in side_by_side([stream("a"), stream("b")])]
        assert sorted(place for place, _ in events) == [0, 0, 1, 1] and set(closed) == {"a", "b"}
        assert {place: event["text"] for place, event in events if "text" in event} == {0: "a", 1: "b"}

        with pytest.raises(EngineFailed, match="died"):
            async for _ in side_by_side([stream("c", fails=True), stream("d")]):
                pass
        left = side_by_side([stream("e"), stream("left")])
        assert await anext(left)
        await left.aclose()  # the client went away
        await asyncio.sleep(0.02)
        assert set(closed) == {"a", "b", "c", "d", "e", "left"}, "nothing goes on in secret"

    asyncio.run(steps())


def test_a_stream_that_breaks_says_so(service):
    client, _ = service(lambda call: {"text": "mobile BREAK", "error": EngineFailed("died")})
    reply = client.post("/v1/chat/completions", json=ASK | {"stream": True})
    assert reply.status_code == 200
    last = json.loads(reply.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_unavailable"
    assert "[DONE]" not in reply.text


def test_openais_own_client_understands_it(service):
    client, _ = service()
    chat = openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0).chat
    said = chat.completions.create(**ASK)
    assert (said.choices[0].message.content, said.usage.total_tokens) == ("mobile data", 7)
    pieces = chat.completions.create(**ASK, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "mobile data "
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        chat.completions.create(**ASK | {"model": "nobody"})
    with pytest.raises(openai.BadRequestError):
        chat.completions.create(**ASK | {"temperature": 5})

    busy, _ = service(lambda call: BackPressureError(65, 64, 429, 1))
    chat = openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=busy, max_retries=0).chat
    with pytest.raises(openai.RateLimitError):
        chat.completions.create(**ASK)


def test_an_adapter_the_engine_lost_is_no_fault_of_the_client(service):
    client, _ = service(lambda call: AdapterMismatch("tickets is not loaded"))
    assert client.post("/v1/chat/completions", json=ASK).status_code == 503
