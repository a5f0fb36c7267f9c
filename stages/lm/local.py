"""The embedded engine: transformers' continuous batching under a supervisor, on a CPU or a GPU.

Requests of the base and of any adapter share a batch. The loop that answers runs in a thread of its own; where it
fails, what was in flight fails with `EngineFailed` and the next request finds a new loop. Nothing waits for ever.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from graftline.stages.errors import EngineFailed
from graftline.stages.lm import scoring
from graftline.stages.lm.batch_hooks import Pending, Router, Steering
from graftline.stages.lm.engine import Answer, Messages, Request
from graftline.stages.lm.in_memory import Loaded
from graftline.stages.lm.load import quietly
from graftline.stages.lm.segment_attention import NAME as SEGMENTS

PAGE = 32
"""Tokens of a cache page: a request holds whole pages."""
BATCH_TOKENS = {"cpu": 512, "cuda": 2048}
"""Tokens of a pass: a new prompt holds up the others' answers for so long."""
BATCH_REQUESTS = {"cpu": 64, "cuda": 256}
CACHE_BYTES = 1 << 30
"""Of keys and values on a CPU, whose pages cost memory once they are written. On a GPU: two fifths of what is free."""
CACHE_TOKENS = 65_536
"""At most: the mask continuous batching keeps on a GPU has `BATCH_TOKENS` times so many numbers."""
CHECK_SECONDS = 0.5
"""How often whoever waits looks whether the loop still lives."""


class LocalEngine:
    """The default engine of a model on this machine.

    Args:
        loaded: the model, its tokenizer and adapters.
    """

    reproducible = False

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.why = loaded, loaded.why
        self.model, self.digest = loaded.name, loaded.digest
        self._pending: dict[str, Pending] = {}
        self._keys = itertools.count()
        self._lock = threading.RLock()
        self._manager: Any = None
        self._closed = False
        self._cache_tokens = cache_tokens(loaded)

    def generate(self, requests: Sequence[Request], on_answer: Callable[[Answer], None] | None = None) -> list[Answer]:
        asked = [(request, *self.loaded.ask(request, self._cache_tokens)) for request in requests]
        events: queue.SimpleQueue[Pending] = queue.SimpleQueue()
        flying: list[Pending] = []
        # The longest answers first: begun last, they would be computed in batches that empty.
        order = sorted(range(len(asked)), key=lambda place: -asked[place][2].limit)
        try:
            for place in order:
                flying.append(self._submit(*asked[place], events, streaming=False))
            left = len(flying)
            while left:
                answer = self._settled(self._hear(events, flying))
                left -= 1
                if on_answer is not None:
                    on_answer(answer)
            answers = dict(zip(order, map(self._settled, flying), strict=True))
            return [answers[place] for place in range(len(asked))]
        finally:
            for pending in flying:
                self._forget(pending)

    def stream(self, request: Request) -> Generator[str, None, Answer]:
        ids, turn = self.loaded.ask(request, self._cache_tokens)
        events: queue.SimpleQueue[Pending] = queue.SimpleQueue()
        pending = self._submit(request, ids, turn, events, streaming=True)
        sent = 0
        try:
            while not self._hear(events, [pending]).over:
                text = turn.shown(pending.tokens())
                if len(text) > sent:
                    yield text[sent:]
                    sent = len(text)
            answer = self._settled(pending)
            if len(answer.text) > sent:
                yield answer.text[sent:]
            return answer
        finally:
            self._forget(pending)

    def cancel(self, request_id: str) -> None:
        for pending in list(self._pending.values()):
            if pending.request.id == request_id:
                pending.end(pending.tokens(), cancelled=True)
                self._drop(pending)

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
        with self._lock:
            manager = self._manager if self._alive() else None
            if manager is None:
                yield  # the lock keeps a loop from starting
                return
        with manager.pause():
            yield

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._stop()
        for pending in list(self._pending.values()):
            pending.end((), error="the engine was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(
        self, request: Request, ids: list[int], turn: Any, events: queue.SimpleQueue[Pending], *, streaming: bool
    ) -> Pending:
        slot = self.loaded.adapters.acquire(request.adapter)
        pending = Pending(str(next(self._keys)), request, ids, turn, slot, events)
        self._pending[pending.key] = pending
        try:
            with self._lock:
                accepted = self._running().add_request(
                    ids,
                    request_id=pending.key,
                    max_new_tokens=turn.limit,
                    streaming=streaming,
                    eos_token_id=list(turn.ends),
                )
            if accepted is None:
                pending.end((), error="the loop stopped as the request came in")
        except BaseException:
            self._forget(pending)
            raise
        return pending

    def _hear(self, events: queue.SimpleQueue[Pending], flying: Sequence[Pending]) -> Pending:
        """The next request something happened to; where the loop is gone, every one of them has failed."""
        while True:
            try:
                return events.get(timeout=CHECK_SECONDS)
            except queue.Empty:
                if not self._alive():
                    for pending in flying:
                        pending.end((), error="the loop stopped")

    def _settled(self, pending: Pending) -> Answer:
        if pending.answer is None:
            raise EngineFailed(
                f"the model failed: {pending.error}",
                where=f"{self.model}, request {pending.request.id}",
                do="ask again: the engine starts anew by itself",
            )
        return pending.answer

    def _forget(self, pending: Pending) -> None:
        """Let go of a request; where it is still in flight, end it."""
        if self._pending.pop(pending.key, None) is None:
            return
        if not pending.over:
            self._drop(pending)
        self.loaded.adapters.release(pending.slot)

    def _drop(self, pending: Pending) -> None:
        """Tell the loop that nobody waits for a request."""
        manager = self._manager
        if manager is not None:
            manager.cancel_request(pending.key)

    def _alive(self) -> bool:
        manager = self._manager
        return (
            manager is not None
            and manager.is_running()
            and manager.background_thread_status.can_accept_new_requests() is None
        )

    def _running(self) -> Any:
        """The loop's manager, started where there is none that lives. Under the lock."""
        if self._closed:
            raise EngineFailed("the engine is closed", where=self.model, do="open it again")
        if not self._alive():
            self._stop()
            self._manager = self._start()
        return self._manager

    def _start(self) -> Any:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        model, kind = self.loaded.model, self.loaded.device.type
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=self._cache_tokens // PAGE,
            max_batch_tokens=BATCH_TOKENS.get(kind, BATCH_TOKENS["cpu"]),
            max_requests_per_batch=BATCH_REQUESTS.get(kind, BATCH_REQUESTS["cpu"]),
            max_blocks_per_request=0,
            allow_block_sharing=False,  # shared by tokens alone: one adapter's keys would serve another's request
            use_async_batching=False,  # what `Steering` says holds for the next pass only
            use_cuda_graph=False,
            auto_switch_to_flash=False,  # it would fetch kernels from the Hub
        )
        ends = list(self.loaded.ends)
        generation = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=ends[0], max_new_tokens=1)
        with quietly():
            model.set_attn_implementation("sdpa")
            manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
            manager.logit_processor = Steering(self._pending, self.loaded.adapters.routing)
            manager.output_router = Router(self._pending)
            if kind == "cpu" and attends_to_all(model.config.get_text_config()):
                model.set_attn_implementation(SEGMENTS)
        manager.start()
        _end_with_main(manager)
        return manager

    def _stop(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None and manager.is_running():
            with quietly():
                manager.stop(block=True, timeout=30.0, hard_stop=True)
        if manager is not None:
            manager.destroy()
            self.loaded.model.set_attn_implementation("sdpa")


def unusable(model: Any) -> str:
    """Why continuous batching cannot run this model; empty where it can."""
    from transformers.generation.continuous_batching.cache import group_layers_by_attn_type

    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        return "it has an encoder"
    if not hasattr(model, "init_continuous_batching") or not model._can_set_attn_implementation():
        return "its attention cannot be exchanged"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "it caps its attention logits"
    try:
        group_layers_by_attn_type(config)
    except ValueError as error:
        return str(error)
    return ""


def attends_to_all(config: Any) -> bool:
    """Whether every layer attends to all earlier tokens."""
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None


def cache_tokens(loaded: Loaded) -> int:
    """Tokens the cache holds: of all requests in flight together, and so of one."""
    config = loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * heads * size * loaded.model.dtype.itemsize
    room = CACHE_BYTES
    if loaded.device.type == "cuda":
        room = torch.cuda.mem_get_info(loaded.device)[0] * 2 // 5
    return max(PAGE * 4, min(room // each, CACHE_TOKENS) // PAGE * PAGE)


_MANAGERS: weakref.WeakSet[Any] = weakref.WeakSet()


def _end_with_main(manager: Any) -> None:
    """End the loop with the main thread: its own thread would keep a program alive that forgot to close its engine."""
    _MANAGERS.add(manager)
    _watch_main()


@functools.cache
def _watch_main() -> None:
    def end_all() -> None:
        threading.main_thread().join()
        for manager in list(_MANAGERS):
            if manager.is_running():
                manager.stop(block=True, timeout=30.0, hard_stop=True)

    threading.Thread(target=end_all, name="engines-end-with-main").start()  # no daemon: the program waits for it
