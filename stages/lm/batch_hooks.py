"""Where we meet transformers' continuous batching: who is in a batch, what each token is, and what comes out.

The loop asks its list of logits processors for arguments before every pass, with all requests of the batch, and
calls it on the logits after; it hands every output to its router. Both are given to the manager before it starts.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import OutputRouter

from graftline.kernels.grouped_lora import BASE
from graftline.stages.lm.drawing import Turn, decide
from graftline.stages.lm.engine import Answer, Request

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.requests import FutureRequestState, GenerationOutput, RequestState

    from graftline.stages.lm.adapters import Routing


@dataclass(eq=False)
class Pending:
    """A request in flight.

    Args:
        key: its name in the loop.
        slot: of its adapter.
        events: where whoever waits hears that there are new tokens, or an end.
    """

    key: str
    request: Request
    ids: list[int]
    turn: Turn
    slot: int
    events: queue.SimpleQueue[Pending]
    state: RequestState | None = None
    answer: Answer | None = None
    error: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def over(self) -> bool:
        return self.answer is not None or self.error is not None

    def tokens(self) -> list[int]:
        """The answer's tokens so far."""
        state = self.state
        if state is None:
            return []
        if len(state.initial_tokens) == len(self.ids):
            return list(state.generated_tokens)
        return (state.initial_tokens + state.generated_tokens)[len(self.ids) :]  # the loop put it back in the queue

    def end(self, tokens: Sequence[int], *, cancelled: bool = False, error: str | None = None) -> None:
        """Settle it, once."""
        with self.lock:
            if self.over:
                return
            if error is not None:
                self.error = error
            else:
                text, finish, count = self.turn.finish(tokens)
                self.answer = Answer(self.request.id, text, "cancelled" if cancelled else finish, len(self.ids), count)
        self.events.put(self)


class Steering(ContinuousBatchingLogitsProcessorList):
    """Says which token uses which adapter, and draws each request's next token by its own seed."""

    def __init__(self, pending: dict[str, Pending], routing: Routing) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.pending, self.routing = pending, routing
        self.turns: list[Turn | None] = []
        self.answers: list[list[int]] = []

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        slots: list[int] = []
        self.turns, self.answers = [], []
        for future in requests_in_batch:
            pending = self.pending.get(future.state.request_id)
            if pending is None:  # cancelled after the loop had looked; what comes out is dropped
                slots += [BASE] * future.query_length
            else:
                pending.state = future.state
                slots += [pending.slot] * future.query_length
            if future.has_new_token:
                self.turns.append(pending.turn if pending else None)
                self.answers.append(pending.tokens() if pending else [])
        self.routing.use(slots)  # of this thread, which is the one that runs the pass
        return arg_storage

    def __call__(self, input_ids: Any, scores: torch.Tensor, logits_processor_args: torch.Tensor) -> torch.Tensor:
        return decide(scores, self.turns, self.answers)


class Router(OutputRouter):
    """Settles requests as their outputs arrive, in the loop's thread."""

    def __init__(self, pending: dict[str, Pending]) -> None:
        super().__init__()
        self.pending = pending

    def deliver(self, output: GenerationOutput) -> None:
        pending = self.pending.get(output.request_id)
        if pending is None:  # cancelled meanwhile
            return
        if output.error is not None:
            pending.end((), error=output.error)
        elif output.is_finished():
            pending.end(output.generated_tokens)
        else:
            pending.events.put(pending)

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        for output in outputs:
            self.deliver(output)
