"""Plain text continued: OpenAI's other endpoint, for whole and streamed answers."""

import json

import openai
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from graftline.stages.errors import PromptTooLong
from graftline.stages.serve.api import create_api
from graftline.stages.serve.chat import Served
from graftline.stages.serve.completions import MOST_PROMPTS, MOST_TOKENS, CompletionRequest

MODELS = [
    Served("base", "engine", None, "tiny", "b" * 64),
    Served("tickets", "engine", "tickets", "tickets", "a" * 64, "base"),
]
ASK = {"model": "tickets", "prompt": "Once upon"}


def answer(call):
    return {"text": f"{call['prompt']} a time", "finish": "length", "tokens_in": 2, "tokens_out": 3}


@pytest.fixture
def service(handle):
    def make(answered=answer):
        engine = handle(answered)
        return TestClient(create_api(MODELS, {"engine": engine}), raise_server_exceptions=False), engine

    return make


def calls(**fields):
    return CompletionRequest.model_validate(ASK | fields).calls("1", "tickets")


def test_the_engine_is_asked_without_a_conversation():
    (call,) = calls(temperature=0, seed=3, stop="\n", presence_penalty=1)
    assert (call["messages"], call["prompt"], call["max_new_tokens"]) == ([], "Once upon", MOST_TOKENS)
    assert (call["temperature"], call["seed"], call["stop"], call["adapter"]) == (0, 3, ["\n"], "tickets")
    assert call["presence"] == 1
    several = calls(prompt=["a", "b"], max_tokens=5)
    assert [(call["id"], call["prompt"], call["max_new_tokens"]) for call in several] == [
        ("1-0", "a", 5), ("1-1", "b", 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [""]},
        {"prompt": [5, 6]},
        {"prompt": [[5, 6]]},
        {"prompt": ["a"] * (MOST_PROMPTS + 1)},
        {"echo": True},
        {"suffix": "the end"},
        {"best_of": 2},
        {"n": 0},
        {"logprobs": 0},
        {"max_tokens": 0},
        {"presence_penalty": 3},
        {"frequency_penalty": 1},
    ],
)
def test_what_would_be_answered_wrongly_is_refused(fields, service):
    with pytest.raises(ValidationError):
        calls(**fields)
    client, engine = service()
    assert client.post("/v1/completions", json=ASK | fields).status_code == 400
    assert engine.calls == []


def test_harmless_fields_are_ignored():
    calls(user="me", echo=False, best_of=1, suffix=None, logprobs=None)


def test_an_answer(service):
    client, engine = service()
    said = client.post("/v1/completions", json=ASK).json()
    assert said["object"] == "text_completion"
    assert (said["model"], said["system_fingerprint"]) == ("tickets", "a" * 16)
    assert said["choices"] == [
        {"index": 0, "text": "Once upon a time", "finish_reason": "length", "logprobs": None}
    ]  # fmt: skip
    assert said["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert engine.calls[0]["adapter"] == "tickets"


def test_several_prompts_are_several_choices(service):
    client, _ = service()
    said = client.post("/v1/completions", json=ASK | {"prompt": ["one", "two"]}).json()
    assert [(choice["index"], choice["text"]) for choice in said["choices"]] == [(0, "one a time"), (1, "two a time")]
    assert said["usage"]["total_tokens"] == 10


def test_a_stream_of_several_prompts(service):
    client, _ = service()
    asked = ASK | {"prompt": ["one", "two"], "stream": True, "stream_options": {"include_usage": True}}
    reply = client.post("/v1/completions", json=asked)
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    *events, counted = (json.loads(line) for line in lines[:-1])
    texts = {0: "", 1: ""}
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "one a time ", 1: "two a time "}
    assert (counted["choices"], counted["usage"]["total_tokens"]) == ([], 10)


def test_several_choices_of_several_prompts(service):
    client, _ = service(lambda call: answer(call) | {"text": f"{call['prompt']} {call['seed']}"})
    asked = ASK | {"prompt": ["one", "two"], "n": 2, "seed": 4}
    said = client.post("/v1/completions", json=asked).json()
    texts = ["one 4", "one 5", "two 4", "two 5"]
    assert [(choice["index"], choice["text"]) for choice in said["choices"]] == list(enumerate(texts))
    counts = {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}
    assert said["usage"] == counts, "a prompt counts once"
    openais = openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)
    pieces = list(openais.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    streamed = dict.fromkeys(range(4), "")
    for piece in pieces[:-1]:
        streamed[piece.choices[0].index] += piece.choices[0].text
    assert [text.strip() for text in streamed.values()] == texts
    assert pieces[-1].choices == [] and pieces[-1].usage.to_dict() == counts


def test_a_prompt_that_is_too_long_is_400_and_an_unknown_model_404(service):
    client, _ = service(lambda call: PromptTooLong("5000 tokens"))
    for stream in (False, True):
        reply = client.post("/v1/completions", json=ASK | {"stream": stream})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, "prompt", "context_length_exceeded")
    assert client.post("/v1/completions", json=ASK | {"model": "nobody"}).status_code == 404


def test_openais_own_client_understands_it(service):
    client, _ = service()
    openais = openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)
    said = openais.completions.create(**ASK)
    assert (said.choices[0].text, said.usage.total_tokens) == ("Once upon a time", 5)
    pieces = openais.completions.create(**ASK, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "Once upon a time "
    with pytest.raises(openai.BadRequestError):
        openais.completions.create(**ASK | {"prompt": ""})
