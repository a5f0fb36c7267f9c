"""The one protocol behind which language models answer: requests, answers, and what an engine can do."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

Messages = Sequence[Mapping[str, str]]
"""A conversation: mappings with `role` and `content`."""
Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn.

    Args:
        temperature: 0 = the likeliest token each time (greedy), 1 = the model's own distribution.
        top_p: draw among the likeliest tokens that hold this probability together (above 0, up to 1).
        max_new_tokens: tokens at most, the end-of-turn token included.
        stop: texts at which the answer ends; not part of it.
        seed: of this request alone: the same seed and prompt give the same text, whoever shares the batch (up to
            rounding).
        presence: subtracted once, before the temperature, from the logit of every token that the answer already has
            (-2 to 2; OpenAI's `presence_penalty`): above 0 it repeats itself less. A prefix is no part of the answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    seed: int = 0
    presence: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As plain values, for digests: without `presence` where there is none, as digests were before there was."""
        values = asdict(self)
        if not self.presence:
            del values["presence"]
        return values


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    Args:
        id: a name; what `cancel` takes.
        messages: the conversation, up to the assistant turn that is asked for.
        sampling: how the answer is drawn.
        adapter: name of a loaded adapter (None: the base).
        prefix: text with which the assistant turn already starts; not part of `Answer.text`. Without messages it is
            the whole prompt, as plain text.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    sampling: Sampling = Sampling()
    adapter: str | None = None
    prefix: str = ""

    def asked(self) -> dict[str, Any]:
        """What it asks, whatever its id, as plain values: what is alike in this is the same request."""
        return {
            "messages": [dict(message) for message in self.messages],
            "sampling": self.sampling.plain(),
            "adapter": self.adapter,
            "prefix": self.prefix,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, and why it ended: `stop` (end of turn, or a stop text), `length` or `cancelled`; of a
    request that could not be asked, why not (`fault`)."""

    id: str
    text: str
    finish: Finish
    tokens_in: int
    tokens_out: int
    fault: str = ""


class Engine(Protocol):
    """A model that answers. Opened by `open_engine`; a context manager.

    Raises, before anything is computed: `PromptTooLong` (a prompt with no room for an answer), `RowFault` (a
    conversation that cannot be rendered), `InvalidField` (a sampling out of range), `AdapterMismatch` (an adapter that
    is not loaded, or not of this base). From any call: `EngineFailed` (the engine died; what was in flight is lost, the
    next call finds a new one).
    """

    model: str
    """The model's name."""
    digest: str
    """Of the model's tensors (`model_digest`)."""
    reproducible: bool
    """Whether the same requests always give the same bits."""
    why: str
    """Why not; empty where they do."""

    def generate(self, requests: Sequence[Request], on_answer: Callable[[Answer], None] | None = None) -> list[Answer]:
        """The answers, in the order of the requests; `on_answer` gets each as it is finished, in this thread."""

    def choice_logprobs(
        self, prompts: Sequence[Messages], choices: Sequence[Sequence[str]], adapter: str | None = None
    ) -> list[list[float]]:
        """For each prompt and each of its choices, the natural log-probability of the choice and its end of turn."""

    def logprobs(
        self, rows: Sequence[Messages], adapter: str | None = None, whole: bool = False, last: bool = False
    ) -> list[list[float]]:
        """For each row, the natural log-probability of every token of its assistant turns, ends of turn included.
        `whole`: of every token of the conversation but the first, the template's own included. `last`: of those of the
        last turn alone, which must be an assistant's."""

    def count_tokens(self, conversations: Sequence[Messages]) -> int:
        """Tokens of conversations, as the model reads them."""

    def stream(self, request: Request) -> Generator[str, None, Answer]:
        """The answer in pieces, as they come; the generator's return value is the whole. Safe beside `generate`."""

    def cancel(self, request_id: str) -> None:
        """End a request early: its answer is what there is by now, `cancelled`. Unknown ids are ignored."""

    def load_adapter(self, name: str, directory: Path) -> None:
        """Load a PEFT LoRA directory under a name. Raises `AdapterMismatch` where it is not for this base."""

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that use it are finished first. Unknown names are ignored."""

    def pause(self) -> AbstractContextManager[None]:
        """Hold generation, keeping what is in flight, while the context is open (to change weights in place)."""

    def close(self) -> None:
        """Stop and free everything; requests in flight end with `EngineFailed`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
