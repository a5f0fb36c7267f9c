"""OpenAI's chat completions, as far as we speak it: requests, answers, chunks, errors. No web framework here."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from graftline.stages.rows import user_text

MOST_TOKENS = 512
"""Tokens of an answer whose request names no limit."""
MOST_CHOICES = 16
"""Answers to one prompt."""


@dataclass(frozen=True)
class Served:
    """One model id: the engine that answers for it, the adapter's name there, and what it is.

    Args:
        id: what clients name.
        engine: the engine's name among the handles.
        adapter: the adapter's name on the engine (None: the model itself).
        root: the name people know the weights by.
        digest: of the weights or the adapter.
        parent: the id of the base, of an adapter.
    """

    id: str
    engine: str
    adapter: str | None
    root: str
    digest: str
    parent: str | None = None


class ApiError(Exception):
    """An error as a client sees it: an HTTP status and OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", param: str | None = None,
        code: str | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class Part(BaseModel):
    """One part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """The message as templates render it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of request may say. A field that would change the answer and is not supported is refused, the
    rest of OpenAI's fields (`user`, `metadata`, ...) are ignored. `adapter` and `mu` are our own: an adapter named
    beside its base, and how much cost counts where the router chooses."""

    model_config = ConfigDict(allow_inf_nan=False)

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that would change the answer → the values that would not."""

    model: str
    adapter: str | None = None
    mu: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def refuse_what_would_be_ignored(cls, given: Any) -> Any:
        for name, harmless in cls.unsupported.items():
            if isinstance(given, dict) and given.get(name) not in (None, *harmless):
                raise ValueError(f"{name} is not supported")
        return given

    @field_validator("stop")
    @classmethod
    def at_most_four(cls, stop: Any) -> Any:
        if isinstance(stop, list) and len(stop) > 4:
            raise ValueError("at most 4 stop sequences")
        return stop

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    def asked(self, id: str, adapter: str | None, prompts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the engine is asked, `choices` times for each prompt, prompt by prompt: plain values, OpenAI's defaults
        filled in (temperature 1, a random seed). Further choices have seeds of their own."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        common = {
            "adapter": adapter,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "presence": self.presence_penalty or 0.0,
            "stop": stop,
        }
        places = [(prompt, choice) for prompt in prompts for choice in range(self.choices)]
        return [
            {"id": f"{id}-{place}", **common, "seed": seed + choice, **prompt}
            for place, (prompt, choice) in enumerate(places)
        ]


class ChatRequest(Asked):
    """A conversation to answer."""

    unsupported = {
        "tools": ([],),
        "functions": ([],),
        "response_format": ({"type": "text"},),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "logit_bias": ({},),
        "frequency_penalty": (0,),
        "audio": (),
    }

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def calls(self, id: str, adapter: str | None) -> list[dict[str, Any]]:
        """What the engine is asked, choice by choice."""
        most = self.max_completion_tokens or self.max_tokens or MOST_TOKENS
        turns = [turn.plain() for turn in self.messages]
        return self.asked(id, adapter, [{"messages": turns, "max_new_tokens": most}])

    @property
    def routed(self) -> str:
        """What decides the route."""
        return user_text([turn.plain() for turn in self.messages])


def usage(answers: Sequence[Mapping[str, Any]], choices: int) -> dict[str, int]:
    """Token counts of finished answers, `choices` to each prompt, which counts once."""
    tokens_in = sum(int(answer["tokens_in"]) for answer in answers[::choices])
    tokens_out = sum(int(answer["tokens_out"]) for answer in answers)
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def completion(
    id: str, created: int, model: str, fingerprint: str, answers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Whole answers to one conversation."""
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [
            {
                "index": place,
                "message": {"role": "assistant", "content": answer["text"], "refusal": None},
                "finish_reason": answer["finish"],
                "logprobs": None,
            }
            for place, answer in enumerate(answers)
        ],
        "usage": usage(answers, len(answers)),
    }


def chunk(
    id: str, created: int, model: str, fingerprint: str, place: int, delta: Mapping[str, Any], finish: str | None = None
) -> dict[str, Any]:
    """One piece of a streamed answer."""
    return {
        "id": id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [{"index": place, "delta": dict(delta), "finish_reason": finish, "logprobs": None}],
    }
