"""What replies mean: whose fault a status is, and how long a server wants to be left alone."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import httpx
import pytest

from graftline.stages.errors import EndpointRefused, EngineFailed, PromptTooLong, RowFault
from graftline.stages.lm.chat_completions import Again, answer_of, fault_of, retry_after
from graftline.stages.lm.endpoint import Endpoint

from .conftest import ask

ENDPOINT = Endpoint("m", url="http://localhost/v1")


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, {}, EndpointRefused), (403, {}, EndpointRefused), (404, {}, EndpointRefused), (302, {}, EndpointRefused),
        (402, {}, EngineFailed), (429, {"code": "insufficient_quota"}, EngineFailed), (413, {}, PromptTooLong),
        (400, {"code": "context_length_exceeded"}, PromptTooLong), (422,
        {"message": "prompt is too long"}, PromptTooLong),
        (429, {"message": "too many tokens per minute"}, Again), (500, {"message": "context length"}, Again),
        (503, {}, Again), (408, {}, Again), (400, {"code": "content_filter"}, RowFault), (400,
        {"message": "odd"}, RowFault),
    ],
)  # fmt: skip
def test_whose_fault_it_is(status: int, error: dict[str, str], kind: type[Exception]) -> None:
    assert type(fault_of(ENDPOINT, ask("x"), httpx.Response(status, json={"error": error}))) is kind


@pytest.mark.parametrize(
    "body", [b"", b"<html>gateway</html>", b'"text"', b"[1]", b'{"error": "text"}', b'{"error": null}']
)
def test_a_fault_may_look_like_anything(body: bytes) -> None:
    found = fault_of(ENDPOINT, ask("x"), httpx.Response(502, content=body))
    assert isinstance(found, Again) and not found.busy
    late = fault_of(ENDPOINT, ask("x"), httpx.Response(502, content=body, headers={"retry-after": "2"}))
    assert isinstance(late, Again) and late.busy and late.after == 2


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": {"content": 3}}]}, {"choices": 1}],
)
def test_what_is_no_chat_completion_is_asked_again(value: Any) -> None:
    with pytest.raises(Again, match="no chat completion"):
        answer_of(ENDPOINT, ask("x"), httpx.Response(200, json=value))


def test_what_is_one() -> None:
    def read(choice: dict[str, Any], **sampling: Any) -> Any:
        return answer_of(ENDPOINT, ask("x", **sampling), httpx.Response(200, json={"choices": [choice]}))

    assert read({"message": {"content": None}}).text == ""
    assert read({"message": {"content": "a\nb"}}, stop=("\n",)).text == "a"
    assert read({"message": {"content": "a"}, "finish_reason": "length"}).finish == "length"
    with pytest.raises(RowFault, match="filter"):
        read({"message": {"content": "a"}, "finish_reason": "content_filter"})


@pytest.mark.parametrize(("said", "seconds"), [("7", 7), ("0.5", 0.5), ("", None), ("soon", None), ("-3", None)])
def test_retry_after_is_read(said: str, seconds: float | None) -> None:
    assert retry_after(httpx.Response(429, headers={"retry-after": said})) == seconds


def test_retry_after_may_be_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert retry_after(httpx.Response(429, headers={"retry-after": date})) == pytest.approx(30, abs=2)
    past = email.utils.formatdate(time.time() - 30, usegmt=True)
    assert retry_after(httpx.Response(429, headers={"retry-after": past})) == 0.0
