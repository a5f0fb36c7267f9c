"""OpenAI's completions: a prompt as plain text, continued without a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from graftline.stages.serve.chat import Asked, usage

MOST_TOKENS = 16
"""Tokens of a continuation whose request names no limit, as OpenAI has it."""
MOST_PROMPTS = 32


class CompletionRequest(Asked):
    """One prompt or several, each continued `n` times. Prompts as token ids are refused: they would be another
    tokenizer's."""

    unsupported = {
        "suffix": ("",),
        "echo": (False,),
        "best_of": (1,),
        "logprobs": (),
        "logit_bias": ({},),
        "frequency_penalty": (0,),
    }

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MOST_PROMPTS)]
    )

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def routed(self) -> str:
        """What decides the route."""
        return "\n".join(self.prompts)

    def calls(self, id: str, adapter: str | None) -> list[dict[str, Any]]:
        """What the engine is asked, prompt by prompt, and of each choice by choice."""
        most = self.max_tokens or MOST_TOKENS
        prompts = [{"messages": [], "prompt": prompt, "max_new_tokens": most} for prompt in self.prompts]
        return self.asked(id, adapter, prompts)


def text_completion(
    id: str, created: int, model: str, fingerprint: str, answers: Sequence[Mapping[str, Any]], choices: int = 1
) -> dict[str, Any]:
    """Whole continuations, `choices` of each prompt."""
    return {
        **_head(id, created, model, fingerprint),
        "choices": [_choice(place, answer["text"], answer["finish"]) for place, answer in enumerate(answers)],
        "usage": usage(answers, choices),
    }


def text_chunk(
    id: str, created: int, model: str, fingerprint: str, place: int, text: str, finish: str | None = None
) -> dict[str, Any]:
    """One piece of a streamed continuation."""
    return {**_head(id, created, model, fingerprint), "choices": [_choice(place, text, finish)]}


def _head(id: str, created: int, model: str, fingerprint: str) -> dict[str, Any]:
    return {
        "id": id,
        "object": "text_completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
    }


def _choice(place: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": place, "text": text, "finish_reason": finish, "logprobs": None}
