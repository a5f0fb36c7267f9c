"""The plain engine: transformers' own `generate` on left-padded batches. For models continuous batching cannot run.

The same sampling, adapters and log-probabilities as the local engine; a batch is one after the other, so a stream
waits for the batch in progress, and pausing waits for its end.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from graftline.stages.errors import EngineFailed
from graftline.stages.lm import scoring
from graftline.stages.lm.drawing import Turn, decide
from graftline.stages.lm.engine import Answer, Messages, Request
from graftline.stages.lm.in_memory import Loaded
from graftline.stages.lm.load import quietly

BATCH_ROWS = 32


class Asked:
    """A request on its way through a batch."""

    def __init__(self, request: Request, ids: list[int], turn: Turn) -> None:
        self.request, self.ids, self.turn = request, ids, turn
        self.tokens: list[int] = []
        self.cancelled = False
        self.answer: Answer | None = None

    @property
    def over(self) -> bool:
        """Whether it needs no further token."""
        full = len(self.tokens) >= self.turn.limit
        ended = bool(self.tokens) and self.tokens[-1] in self.turn.ends
        return self.cancelled or full or ended or self.turn.stopped(self.tokens)

    def settle(self) -> Answer:
        text, finish, count = self.turn.finish(self.tokens)
        finish = "cancelled" if self.cancelled else finish
        self.answer = Answer(self.request.id, text, finish, len(self.ids), count)
        return self.answer


class _Draw(LogitsProcessor):
    """Draws each row's next token by its own seed; a row that is over gets its end-of-turn token."""

    def __init__(self, batch: Sequence[Asked]) -> None:
        self.batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        rows = [row for row, asked in enumerate(self.batch) if not asked.over]
        chosen = decide(scores[rows], [self.batch[row].turn for row in rows], [self.batch[row].tokens for row in rows])
        scores = torch.full_like(scores, -torch.inf)
        scores[:, self.batch[0].turn.ends[0]] = 0
        scores[rows] = chosen
        return scores


class _Note(StoppingCriteria):
    """Notes each row's new token; done where every row is over."""

    def __init__(self, batch: Sequence[Asked], hear: Callable[[], None] | None) -> None:
        self.batch, self.hear = batch, hear

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for asked, token in zip(self.batch, input_ids[:, -1].tolist(), strict=True):
            if not asked.over:
                asked.tokens.append(token)
        if self.hear is not None:
            self.hear()
        return torch.tensor([asked.over for asked in self.batch], device=input_ids.device)


class PlainEngine:
    """An engine without continuous batching.

    Args:
        loaded: the model, its tokenizer and adapters.
    """

    reproducible = False

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.why = loaded, loaded.why
        self.model, self.digest = loaded.name, loaded.digest
        self._asked: dict[int, Asked] = {}
        self._turn = threading.Lock()
        self._closed = False

    def generate(self, requests: Sequence[Request], on_answer: Callable[[Answer], None] | None = None) -> list[Answer]:
        asked = [Asked(request, *self.loaded.ask(request)) for request in requests]
        self._asked |= {id(each): each for each in asked}
        try:
            # Rows of like length, so that little is padding.
            by_length = sorted(asked, key=lambda each: (len(each.ids), each.turn.limit))
            for first in range(0, len(by_length), BATCH_ROWS):
                batch = by_length[first : first + BATCH_ROWS]
                self._answer(batch)
                for each in batch:
                    answer = each.settle()
                    if on_answer is not None:
                        on_answer(answer)
            return [each.answer for each in asked if each.answer is not None]
        finally:
            for each in asked:
                del self._asked[id(each)]

    def stream(self, request: Request) -> Generator[str, None, Answer]:
        asked = Asked(request, *self.loaded.ask(request))
        events: queue.SimpleQueue[BaseException | str | None] = queue.SimpleQueue()

        def hear() -> None:
            events.put(asked.turn.shown(asked.tokens))

        def work() -> None:
            try:
                self._answer([asked], hear)
            except BaseException as error:
                events.put(error)
            else:
                events.put(None)

        self._asked[id(asked)] = asked
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        sent = 0
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                if len(event) > sent:
                    yield event[sent:]
                    sent = len(event)
            answer = asked.settle()
            if len(answer.text) > sent:
                yield answer.text[sent:]
            return answer
        finally:
            asked.cancelled = True
            worker.join()
            del self._asked[id(asked)]

    def cancel(self, request_id: str) -> None:
        for asked in list(self._asked.values()):
            if asked.request.id == request_id:
                asked.cancelled = True

    def choice_logprobs(
        self, prompts: Sequence[Messages], choices: Sequence[Sequence[str]], adapter: str | None = None
    ) -> list[list[float]]:
        return scoring.choice_logprobs(self.loaded, prompts, choices, adapter)

    def logprobs(
        self, rows: Sequence[Messages], adapter: str | None = None, whole: bool = False, last: bool = False
    ) -> list[list[float]]:
        return scoring.logprobs(self.loaded, rows, adapter, whole, last)

    def count_tokens(self, conversations: Sequence[Messages]) -> int:
        return scoring.count_tokens(self.loaded, conversations)

    def load_adapter(self, name: str, directory: Path) -> None:
        self.loaded.adapters.load(name, directory)

    def unload_adapter(self, name: str) -> None:
        self.loaded.adapters.unload(name)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        with self._turn:
            yield

    def close(self) -> None:
        self._closed = True
        for asked in list(self._asked.values()):
            asked.cancelled = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, batch: Sequence[Asked], hear: Callable[[], None] | None = None) -> None:
        """Fill in a batch's tokens."""
        loaded, adapters = self.loaded, self.loaded.adapters
        end = loaded.ends[0]
        width = max(len(asked.ids) for asked in batch)
        ids = torch.full((len(batch), width), end)
        mask = torch.zeros_like(ids)
        for row, asked in enumerate(batch):
            ids[row, width - len(asked.ids) :] = torch.tensor(asked.ids)
            mask[row, width - len(asked.ids) :] = 1
        with self._turn:
            if self._closed:
                raise EngineFailed("the engine is closed", where=self.model, do="open it again")
            slots = []
            try:
                for asked in batch:
                    slots.append(adapters.acquire(asked.request.adapter))
                adapters.routing.use(slots)
                with torch.no_grad(), quietly():
                    loaded.model.generate(
                        input_ids=ids.to(loaded.device),
                        attention_mask=mask.to(loaded.device),
                        max_new_tokens=max(asked.turn.limit for asked in batch),
                        do_sample=False,
                        use_cache=True,
                        pad_token_id=end,
                        eos_token_id=list(loaded.ends),
                        logits_processor=LogitsProcessorList([_Draw(batch)]),
                        stopping_criteria=StoppingCriteriaList([_Note(batch, hear)]),
                    )
            except (RuntimeError, ValueError, IndexError) as error:
                raise EngineFailed(f"the model failed: {error}", where=self.model) from error
            finally:
                adapters.routing.use(())
                for slot in slots:
                    adapters.release(slot)
