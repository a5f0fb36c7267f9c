"""Chat completions over HTTP: what is sent for a request, and what a reply means."""

from __future__ import annotations

import email.utils
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx

from graftline.stages.errors import EndpointRefused, EngineFailed, PromptTooLong, RowFault
from graftline.stages.lm.endpoint import Endpoint
from graftline.stages.lm.engine import Answer, Finish, Request

TOO_LONG = ("context_length_exceeded", "context length", "context window", "too many tokens", "prompt is too long",
            "input is too long", "maximum prompt length")  # fmt: skip
NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance")
FILTERED = ("content_filter", "content_policy_violation", "content_management_policy")
GO_ON = "Go on from here; write only what follows, nothing of what is here:\n"


@dataclass(frozen=True, slots=True)
class PricedAnswer(Answer):
    """An answer and what it cost."""

    money: float = 0.0


class Again(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, why: str, after: float | None = None, busy: bool = False) -> None:
        super().__init__(why)
        self.why, self.after, self.busy = why, after, busy


def body_of(endpoint: Endpoint, request: Request) -> dict[str, Any]:
    """What is sent for a request."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [dict(message) for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": sampling.seed % 2**31,
    }
    if sampling.presence:
        body["presence_penalty"] = sampling.presence
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if request.prefix:
        if endpoint.prefix == "ask":
            last = body["messages"][-1]
            if last["role"] != "user":
                body["messages"].append(last := {"role": "user", "content": ""})
            last["content"] = f"{last['content']}\n\n{GO_ON}{request.prefix}".strip()
        else:
            turn = {"role": "assistant", "content": request.prefix}
            marked = endpoint.prefix == "mark"
            body["messages"].append({**turn, "prefix": True} if marked else turn)
            if not marked:
                body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def answer_of(endpoint: Endpoint, request: Request, reply: httpx.Response) -> Answer:
    """The answer in a reply of status 200.

    Raises:
        Again: it is no chat completion.
        RowFault: the server's filter cut it.
    """
    try:
        value = reply.json()
        choice = value["choices"][0]
        text = choice["message"]["content"]
        ended = choice.get("finish_reason")
        usage = value.get("usage") or {}
        if not isinstance(text, str | None):
            raise TypeError("content")
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Again(f"an answer that is no chat completion ({type(error).__name__})") from None
    if ended == "content_filter":
        raise RowFault("the server's filter cut the answer", where=f"request {request.id}")
    text = text or ""
    if request.prefix and endpoint.prefix == "ask":
        text = text.removeprefix(request.prefix)
    for stop in request.sampling.stop:  # some servers leave it in
        text = text.partition(stop)[0]
    # A server that counts nothing: about four bytes a token.
    sent = sum(len(message["content"].encode()) for message in request.messages)
    tokens_in = counts[0] if isinstance(counts[0], int) else sent // 4 + 1
    tokens_out = counts[1] if isinstance(counts[1], int) else len(text.encode()) // 4 + 1
    money = (tokens_in * endpoint.price_in + tokens_out * endpoint.price_out) / 1e6
    finish: Finish = "length" if ended == "length" else "stop"
    return PricedAnswer(request.id, text, finish, tokens_in, tokens_out, money=money)


def fault_of(endpoint: Endpoint, request: Request, reply: httpx.Response) -> Exception:
    """What a reply of another status means: whose fault it is."""
    status, (message, code) = reply.status_code, _message(reply)
    where = f"request {request.id}"
    if status in (401, 403):
        return refused_key(endpoint, reply)
    if status in (404, 405):
        return EndpointRefused(
            f"the server does not know this model or address ({status}: {message})",
            where=f"{endpoint.model} at Endpoint.url",
            do="check the model's name, and that the url ends as in https://host/v1",
        )
    if status == 402 or code in NO_MONEY:
        return EngineFailed(f"the account is empty ({message})", where=endpoint.model, do="fill it and run again")
    if status == 429:  # may speak of "too many tokens", too: a minute
        return Again(f"429: {message}", retry_after(reply), busy=True)
    if status == 413 or (status in (400, 422) and any(mark in f"{code} {message}".lower() for mark in TOO_LONG)):
        return PromptTooLong(f"the server refuses the length: {message}", where=where, do="shorten it")
    if status in (408, 409, 425) or status >= 500:
        after = retry_after(reply)
        return Again(f"{status}: {message}", after, busy=status == 503 or after is not None)
    if status in (400, 422) and any(mark in f"{code} {message}".lower() for mark in FILTERED):
        return RowFault(f"the server's filter refuses it: {message}", where=where)
    if status in (400, 422):
        return RowFault(f"the server refuses it ({status}): {message}", where=where)
    return EndpointRefused(
        f"the server answered {status}: {message}", where=endpoint.model, do="check Endpoint.url and key_env"
    )


def refused_key(endpoint: Endpoint, reply: httpx.Response) -> EndpointRefused:
    """A key the server does not take; the message names the variable, never the key."""
    name = endpoint.key_env
    return EndpointRefused(
        f"the server refuses {f'the key in {name}' if name else 'a request without a key'} ({reply.status_code})",
        where="Endpoint.key_env",
        do="set the right key where stages run" if name else "name the environment variable with the key",
    )


def _message(reply: httpx.Response) -> tuple[str, str]:
    """The error's text, short, and its code."""
    try:
        value = reply.json()
        error = value.get("error", value) if isinstance(value, dict) else value
        if isinstance(error, dict):
            return str(error.get("message") or error)[:300], str(error.get("code") or error.get("type") or "")
        return str(error)[:300], ""
    except ValueError:
        return " ".join(reply.text[:300].split()) or reply.reason_phrase, ""


def retry_after(reply: httpx.Response) -> float | None:
    """Seconds the server asks to be left alone: a number, or a date."""
    said = reply.headers.get("retry-after", "").strip()
    try:
        if re.fullmatch(r"\d{1,9}(\.\d*)?", said):
            return float(said)
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time()) if said else None
    except ValueError:
        return None
