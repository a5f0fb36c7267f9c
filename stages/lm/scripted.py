"""The scripted engine: answers computed from the prompt and the seed, for tests and dry runs.

It replaces generation only: log-probabilities are those of the model's real weights (of `tiny`'s, where it has none).
The same request has the same answer on every machine, so a whole pipeline can be checked to the bit without a model.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from graftline.stages.errors import AdapterMismatch, EngineFailed
from graftline.stages.lm.engine import Answer, Finish, Messages, Request
from graftline.stages.lm.load import model_digest, refuse_other_base
from graftline.stages.lm.words import CLOSERS, LINKS, OPENERS, SUBJECTS, VERBS
from graftline.stages.rows import digest

if TYPE_CHECKING:
    from graftline.stages.lm.in_memory import Loaded

SHORTEST, LONGEST = 8, 25
"""Words of an answer."""
MEAN = 18.3
"""Words of an answer in the mean."""


class ScriptedEngine:
    """Answers that are a pure function of messages, prefix, sampling and the adapter's name.

    Args:
        model: its name.
        directory: real weights for log-probabilities (None: those of `tiny`).
        adapters: name → PEFT directory; only the names matter to answers.
    """

    reproducible = True
    why = ""

    def __init__(self, model: str, directory: Path | None, adapters: Mapping[str, Path]) -> None:
        self.model, self.directory = model, directory
        self.digest = model_digest(directory) if directory else hashlib.sha256(b"scripted").hexdigest()
        self.adapters: dict[str, Path] = {}
        self._ended: set[str] = set()
        self._closed = False
        for name, place in adapters.items():
            self.load_adapter(name, place)

    def generate(self, requests: Sequence[Request], on_answer: Callable[[Answer], None] | None = None) -> list[Answer]:
        answers = []
        for request in requests:
            answers.append(self._answer(request))
            if on_answer is not None:
                on_answer(answers[-1])
        return answers

    def stream(self, request: Request) -> Generator[str, None, Answer]:
        answer = self._answer(request)
        self._ended.discard(request.id)
        sent = ""
        for word in answer.text.split(" ") if answer.text else ():
            if request.id in self._ended:
                return Answer(request.id, sent, "cancelled", answer.tokens_in, len(sent.split()))
            piece = f" {word}" if sent else word
            sent += piece
            yield piece
        return answer

    def cancel(self, request_id: str) -> None:
        self._ended.add(request_id)

    def choice_logprobs(
        self, prompts: Sequence[Messages], choices: Sequence[Sequence[str]], adapter: str | None = None
    ) -> list[list[float]]:
        from graftline.stages.lm import scoring

        return scoring.choice_logprobs(self._weights, prompts, choices, self._known(adapter))

    def logprobs(
        self, rows: Sequence[Messages], adapter: str | None = None, whole: bool = False, last: bool = False
    ) -> list[list[float]]:
        from graftline.stages.lm import scoring

        return scoring.logprobs(self._weights, rows, self._known(adapter), whole, last)

    def count_tokens(self, conversations: Sequence[Messages]) -> int:
        from graftline.stages.lm import scoring

        return scoring.count_tokens(self._weights, conversations)

    def load_adapter(self, name: str, directory: Path) -> None:
        if self.directory is not None:
            refuse_other_base(Path(directory), self.digest)
        self.adapters[name] = Path(directory)
        if "_weights" in self.__dict__:
            self._weights.adapters.load(name, directory)

    def unload_adapter(self, name: str) -> None:
        self.adapters.pop(name, None)
        if "_weights" in self.__dict__:
            self._weights.adapters.unload(name)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @functools.cached_property
    def _weights(self) -> Loaded:
        from graftline.stages.lm.in_memory import Loaded

        if self.directory is not None:
            return Loaded(self.model, self.directory, "float32", self.adapters)
        from graftline.stages.lm import tiny

        with tempfile.TemporaryDirectory() as folder:
            tiny.write(Path(folder))
            return Loaded(self.model, Path(folder), "float32", self.adapters)

    def _known(self, adapter: str | None) -> str | None:
        if adapter is not None and adapter not in self.adapters:
            loaded = ", ".join(sorted(self.adapters)) or "none"
            raise AdapterMismatch(f"no adapter {adapter!r} is loaded (loaded: {loaded})", do="load it first")
        return adapter

    def _answer(self, request: Request) -> Answer:
        if self._closed:
            raise EngineFailed("the engine is closed", where=self.model, do="open it again")
        sampling = request.sampling
        messages = [[message["role"], message["content"]] for message in request.messages]
        seed = digest([messages, request.prefix, sampling.plain(), self._known(request.adapter)])
        tokens_in = sum(len(content.split()) + 4 for _, content in messages) + len(request.prefix.split())
        words = sentence(int(seed[:16], 16)).split()
        count = len(words) + 1  # a word is a token here, and so is the end of the turn
        text = " ".join(words[: sampling.max_new_tokens])
        cuts = [place for place in (text.find(stop) for stop in sampling.stop) if place >= 0]
        if cuts:
            text = text[: min(cuts)]
            return Answer(request.id, text, "stop", tokens_in, len(text.split()) + 1)
        finish: Finish = "length" if count > sampling.max_new_tokens else "stop"
        return Answer(request.id, text, finish, tokens_in, min(count, sampling.max_new_tokens))


def sentence(seed: int) -> str:
    """An English sentence of 8 to 25 words."""
    draw = random.Random(seed)
    most = draw.randint(SHORTEST, LONGEST)
    words = [*draw.choice(OPENERS).split(), *draw.choice(SUBJECTS).split(), *draw.choice(VERBS).split()]
    while len(words) < most:
        if draw.random() < 0.4:
            more = draw.choice(CLOSERS).split()
        else:
            more = [*draw.choice(SUBJECTS).split(), *draw.choice(VERBS).split()]
        more = [draw.choice(LINKS), *more]
        if len(words) >= SHORTEST and len(words) + len(more) > LONGEST:
            break
        words += more
    text = " ".join(words[:LONGEST])
    return f"{text[0].upper()}{text[1:]}{draw.choice('..!?')}"
