"""One engine behind Ray Serve: requests of all clients, for all adapters, share its batch."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import EngineFailed
from graftline.stages.serve.place import local

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Request


MOST_FAILURES = 3


class EngineReplica:
    """A deployment that owns one engine.

    Args:
        model: `uri` and `digest` of the model's artefact, `llm`, the fields of its specification, and `held`, how its
            weights are held (absent: as the adapters say).
        adapters: name → `uri` and `digest` of an adapter's artefact.
        threads: of torch.
        concurrency: answers in the making at once.

    Raises:
        EngineFailed: an artefact is not what the configuration says.
    """

    def __init__(
        self, model: Mapping[str, Any], adapters: Mapping[str, Mapping[str, Any]], threads: int, concurrency: int
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # a reused worker process would keep the last one's
        from graftline.stages.lm.llm import Llm
        from graftline.stages.lm.open import open_engine

        llm = Llm(**model["llm"])
        places = {name: local(adapter["uri"], adapter["digest"], "adapter") for name, adapter in adapters.items()}
        directory = local(model["uri"], model["digest"], "model")
        self.engine = open_engine(llm, directory, places, threads=threads, held=model.get("held"))
        self.pool = ThreadPoolExecutor(concurrency, thread_name_prefix="answer")
        self.failures = 0

    async def answer(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """A whole answer: `text`, `finish`, `tokens_in`, `tokens_out`."""
        request = self._request(call)
        try:
            answers = await self._blocking(self.engine.generate, [request])
        except asyncio.CancelledError:  # the client went away
            self.engine.cancel(request.id)
            raise
        return {"text": answers[0].text, **_ending(answers[0])}

    async def stream(self, call: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The answer's pieces as they come, each a `text`; last `finish`, `tokens_in` and `tokens_out`."""
        request = self._request(call)
        pieces = self.engine.stream(request)
        ended = False
        try:
            while not ended:
                event = await self._blocking(_next, pieces)
                ended = "finish" in event
                yield event
        finally:
            if not ended:
                self.engine.cancel(request.id)

    async def health(self) -> bool:
        """True, else raises what `check_health` does."""
        self.check_health()
        return True

    def check_health(self) -> None:
        """What Ray Serve asks from time to time; raising has the replica replaced. An engine that died is replaced by
        the next call; one that dies of every call is not worth another try."""
        if self.failures >= MOST_FAILURES:
            raise EngineFailed(f"the engine died {self.failures} times in a row", where="EngineReplica")

    def _request(self, call: Mapping[str, Any]) -> Request:
        from graftline.stages.lm.engine import Request, Sampling

        sampling = Sampling(
            temperature=call["temperature"],
            top_p=call["top_p"],
            max_new_tokens=call["max_new_tokens"],
            stop=tuple(call["stop"]),
            seed=call["seed"],
            presence=call["presence"],
        )
        return Request(
            id=call["id"],
            messages=tuple(call["messages"]),
            sampling=sampling,
            adapter=call["adapter"],
            prefix=call.get("prompt", ""),
        )

    async def _blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run in a thread of the pool, and count how often in a row the engine died of it."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)
        except EngineFailed:
            self.failures += 1
            raise
        self.failures = 0
        return result


def _next(pieces: Generator[str, None, Answer]) -> dict[str, Any]:
    """The next event of a stream; the generator's return value is the ending."""
    try:
        return {"text": next(pieces)}
    except StopIteration as end:
        return _ending(end.value)


def _ending(answer: Answer) -> dict[str, Any]:
    if answer.finish == "cancelled":
        raise EngineFailed("the answer was cancelled", where=f"request {answer.id}", do="send it again")
    return {"finish": answer.finish, "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out}
