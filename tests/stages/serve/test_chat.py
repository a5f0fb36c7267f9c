"""OpenAI's request, read strictly where it matters, and what the engine is then asked."""

import pytest
from pydantic import ValidationError

from graftline.stages.serve.chat import MOST_CHOICES, MOST_TOKENS, ChatRequest, usage

MINIMAL = {"model": "tickets", "messages": [{"role": "user", "content": "no signal"}]}


def call(**fields):
    (one,) = ChatRequest.model_validate(MINIMAL | fields).calls("1", "tickets")
    return one


def test_defaults_are_openais():
    found = call()
    assert found["messages"] == [{"role": "user", "content": "no signal"}]
    assert (found["temperature"], found["top_p"], found["max_new_tokens"], found["stop"]) == (1.0, 1.0, MOST_TOKENS, [])
    assert {call()["seed"] for _ in range(4)} != {found["seed"]}


def test_what_is_asked_arrives():
    found = call(temperature=0, top_p=0.5, max_tokens=7, stop="\n", seed=3)
    assert (found["temperature"], found["top_p"], found["max_new_tokens"], found["stop"], found["seed"]) == (
        0, 0.5, 7, ["\n"], 3,
    )  # fmt: skip
    assert call(max_tokens=7, max_completion_tokens=9)["max_new_tokens"] == 9
    assert call(stop=["a", "b"])["stop"] == ["a", "b"]
    assert [call(presence_penalty=given)["presence"] for given in (None, 0, -2, 1.5, 2)] == [0, 0, -2, 1.5, 2]


def test_parts_and_developer_messages():
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "no "}, {"type": "text", "text": "signal"}]},
    ]
    assert call(messages=turns)["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "no signal"},
    ]  # fmt: skip


def test_harmless_fields_are_ignored():
    call(user="me", metadata={"a": "b"}, n=1, tools=[], logprobs=False, response_format={"type": "text"}, store=True)
    call(presence_penalty=0.0, frequency_penalty=0, logit_bias=None)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": "hello"},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"stop": ["a"] * 5},
        {"stop": [""]},
        {"n": 0},
        {"n": MOST_CHOICES + 1},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"logit_bias": {"5": 10}},
        {"presence_penalty": 3},
        {"presence_penalty": -2.1},
        {"presence_penalty": "much"},
        {"frequency_penalty": 0.5},
    ],
)
def test_what_would_be_answered_wrongly_is_refused(fields):
    with pytest.raises(ValidationError):
        call(**fields)


def test_several_choices_have_seeds_of_their_own():
    found = ChatRequest.model_validate(MINIMAL | {"n": 3, "seed": 7}).calls("1", "tickets")
    assert [(each["id"], each["seed"]) for each in found] == [("1-0", 7), ("1-1", 8), ("1-2", 9)]
    assert found[0] == call(seed=7), "the first is the one a single choice would be"


def test_usage():
    answers = [{"tokens_in": 5, "tokens_out": 2}]
    assert usage(answers, 1) == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert usage(answers * 3, 3) == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert usage(answers * 4, 2) == {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}
