"""The endpoint engine: an OpenAI-compatible server behind the engine's protocol.

Threads send requests through a gate (`pressure.py`), which all engines of a run share. An error is told apart by whose
fault it is: of the request (a `RowFault` or `PromptTooLong`, after all others are answered, and those answers are not
paid for again), of everything that is asked (`EndpointRefused`, at once), or of the world (asked again, then
`EngineFailed`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from graftline.stages.errors import (
    AdapterMismatch,
    EndpointRefused,
    EngineFailed,
    GraftlineError,
    PromptTooLong,
    RowFault,
)
from graftline.stages.lm.chat_completions import Again, PricedAnswer, answer_of, body_of, fault_of, refused_key
from graftline.stages.lm.endpoint import Endpoint, no_logprobs
from graftline.stages.lm.engine import Answer, Messages, Request
from graftline.stages.lm.pressure import LOOK_AROUND, Gate, Pressure, pause
from graftline.stages.rows import digest

LOOK_UP = 5.0
"""Seconds to look at a server before a run."""


class Stop(threading.Event):
    """Set when a call's requests are not wanted any more, with the first reason."""

    why: BaseException | None = None
    _lock = threading.Lock()

    def because(self, error: BaseException) -> None:
        """Sets it; the first reason stays."""
        with self._lock:
            self.why = self.why or error
        self.set()


class EndpointEngine:
    """A server's model.

    Args:
        endpoint: what was asked for.
        adapters: none; a server has its own.
        gate: what its requests go through (None: one of its own).
    """

    reproducible = False
    why = "answered by a server, which may answer differently next time"

    def __init__(self, endpoint: Endpoint, adapters: Mapping[str, Path], gate: Gate | None = None) -> None:
        self.endpoint, self.model = endpoint, endpoint.model
        self.digest = hashlib.sha256(f"endpoint:{endpoint.model}".encode()).hexdigest()
        for name, place in adapters.items():
            self.load_adapter(name, place)
        self.gate: Gate = gate or Pressure(endpoint.model, endpoint.concurrency, endpoint.patience)
        key = _key(endpoint)
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(endpoint.timeout, connect=min(10.0, endpoint.timeout)),
            limits=httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency),
            follow_redirects=False,
        )
        self._threads = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="endpoint")
        self._unclaimed: dict[str, Answer] = {}
        """Answers to requests of a call that then failed, by what was asked."""
        self._cancelled: set[str] = set()
        self._calls: set[Stop] = set()
        self._going = threading.Event()
        self._going.set()
        self._closed = False

    def generate(self, requests: Sequence[Request], on_answer: Callable[[Answer], None] | None = None) -> list[Answer]:
        for request in requests:
            self._refuse_adapter(request.adapter)
        found: dict[int, Answer] = {}
        telling = False
        stop, faults = Stop(), list[tuple[int, GraftlineError]]()
        flying: dict[Future[Answer], int] = {}
        self._calls.add(stop)
        try:
            waiting, left = list(enumerate(requests))[::-1], set[Future[Answer]]()
            while waiting or left:
                # No more at once than may be in flight: what is answered but not told yet is lost in a kill.
                while waiting and len(left) < self.endpoint.concurrency:
                    place, request = waiting.pop()
                    left.add(future := self._submitted(request, stop))
                    flying[future] = place
                each = next(iter(wait(left, return_when=FIRST_COMPLETED).done))
                left.remove(each)
                try:
                    found[flying[each]] = each.result()
                except (RowFault, PromptTooLong) as error:
                    faults.append((flying[each], error))
                    continue
                if on_answer is not None:
                    telling = True
                    on_answer(found[flying[each]])
                    telling = False
        except BaseException as error:
            stop.because(error)
            for each in flying:
                each.cancel()
            wait(flying)
            self._keep(requests, flying, {} if on_answer is not None else found)
            if on_answer is not None and not telling:  # what was in flight and got its answer all the same
                for each, place in flying.items():
                    if place not in found and not each.cancelled() and each.exception() is None:
                        on_answer(each.result())
            raise stop.why or error from None
        finally:
            self._calls.discard(stop)
        if faults:
            self._keep(requests, {}, {} if on_answer is not None else found)
            raise min(faults, key=lambda fault: fault[0])[1]
        return [found[place] for place in range(len(requests))]

    def _submitted(self, request: Request, stop: Stop) -> Future[Answer]:
        try:
            return self._threads.submit(self._answered, request, stop)
        except RuntimeError as error:
            raise EngineFailed("the engine is closed", where=self.model, do="open it again") from error

    def _keep(
        self, requests: Sequence[Request], flying: Mapping[Future[Answer], int], found: dict[int, Answer]
    ) -> None:
        """Keeps answers that nobody got, so that they are not paid for again when they are asked for again."""
        for each, place in flying.items():
            if not each.cancelled() and each.exception() is None:
                found.setdefault(place, each.result())
        for place, answer in found.items():
            self._unclaimed[_asked(requests[place])] = answer

    def stream(self, request: Request) -> Generator[str, None, Answer]:
        """In one piece: the server's own pieces could not be asked for again if it failed between them."""
        (answer,) = self.generate([request])
        if answer.text:
            yield answer.text
        return answer

    def cancel(self, request_id: str) -> None:
        self._cancelled.add(request_id)

    def choice_logprobs(
        self, prompts: Sequence[Messages], choices: Sequence[Sequence[str]], adapter: str | None = None
    ) -> list[list[float]]:
        raise no_logprobs(self.model)

    def logprobs(
        self, rows: Sequence[Messages], adapter: str | None = None, whole: bool = False, last: bool = False
    ) -> list[list[float]]:
        raise no_logprobs(self.model)

    def count_tokens(self, conversations: Sequence[Messages]) -> int:
        raise no_logprobs(self.model)  # what counts tokens here scores them; answers say themselves what they took

    def load_adapter(self, name: str, directory: Path) -> None:
        raise AdapterMismatch("a server takes no adapters of ours", where=self.model, do="use an Llm")

    def unload_adapter(self, name: str) -> None:
        return None

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        self._going.clear()
        try:
            yield
        finally:
            self._going.set()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for stop in list(self._calls):
                stop.because(EngineFailed("the engine is closed", where=self.model, do="open it again"))
            self._threads.shutdown(wait=False)  # what waits ends at the gate
            self._http.close()
            self.gate.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def refuse_unknown(self) -> None:
        """Asks the server for its models, once. One that does not answer, or does not list them, passes.

        Raises:
            EndpointRefused: it refuses the key, or lists models without this one.
        """
        try:
            reply = self._http.get(f"{self.endpoint.url.rstrip('/')}/models", timeout=LOOK_UP)
        except httpx.HTTPError:
            return
        if reply.status_code in (401, 403):
            raise refused_key(self.endpoint, reply)
        try:
            names = [str(each["id"]) for each in reply.json()["data"]] if reply.status_code == 200 else []
        except (ValueError, KeyError, TypeError):
            return
        if names and self.model not in names:
            shown = ", ".join(sorted(names)[:10])
            raise EndpointRefused(f"the server has no model {self.model!r}; it has {shown}", where="Endpoint.model")

    # --- one request ------------------------------------------------------------------------------------------

    def _answered(self, request: Request, stop: Stop) -> Answer:
        try:
            return self._tried(request, stop)
        except (RowFault, PromptTooLong):
            raise
        except BaseException as error:
            stop.because(error)  # the others would fare no better
            raise

    def _tried(self, request: Request, stop: Stop) -> Answer:
        kept = self._unclaimed.pop(_asked(request), None)
        if kept is not None:
            return _renamed(kept, request.id)
        failures, seen, rest = 0, -1, 0.0
        while True:
            if self._closed or stop.is_set():
                raise EngineFailed("the engine was closed or gave up", where=self.model, do="run it again")
            if request.id in self._cancelled:
                self._cancelled.discard(request.id)
                return PricedAnswer(request.id, "", "cancelled", 0, 0)
            entered = self.gate.enter(stop, rest)
            if not self._going.is_set():
                self.gate.left()
                self._going.wait(LOOK_AROUND)
                continue
            try:
                answer = self._sent(request)
            except Again as again:
                answers = self.gate.pushed_back(entered, again.why, again.after, again.busy)
                # While nobody is answered it is no fault of this request.
                if not again.busy and answers != seen:
                    failures, seen = failures + 1, answers
                rest = 0.0 if again.busy else pause(failures)
                if failures > self.endpoint.retries:
                    raise EngineFailed(
                        f"the server failed {failures} times at one request, last: {again.why}",
                        where=f"{self.model}, request {request.id}",
                        do="look at the server's log; run it again",
                    ) from None
            except (RowFault, PromptTooLong):
                self.gate.answered()
                raise
            except BaseException:
                self.gate.left()
                raise
            else:
                self.gate.answered()
                return answer

    def _sent(self, request: Request) -> Answer:
        try:
            reply = self._http.post(
                f"{self.endpoint.url.rstrip('/')}/chat/completions", json=body_of(self.endpoint, request)
            )
        except httpx.TimeoutException:
            raise Again(f"no answer within {self.endpoint.timeout:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Again(f"no connection: {type(error).__name__}") from None
        except RuntimeError as error:  # the client was closed
            raise EngineFailed("the engine is closed", where=self.model, do="open it again") from error
        if reply.status_code == 200:
            return answer_of(self.endpoint, request, reply)
        raise fault_of(self.endpoint, request, reply)

    def _refuse_adapter(self, name: str | None) -> None:
        if name is not None:
            raise AdapterMismatch(f"a server has no adapter {name!r}", where=self.model, do="use an Llm")


def _key(endpoint: Endpoint) -> str:
    if endpoint.key_env is None:
        return ""
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise EndpointRefused(
            f"the environment variable {endpoint.key_env} is not set", where="Endpoint.key_env", do="set it"
        )
    if not key.isascii() or any(map(str.isspace, key)):
        raise EndpointRefused(
            f"{endpoint.key_env} holds no key", where="Endpoint.key_env", do="set it to the key alone"
        )
    return key


def _asked(request: Request) -> str:
    """What a request asks, whatever its id."""
    return digest(request.asked())


def _renamed(answer: Answer, id: str) -> Answer:
    return PricedAnswer(
        id,
        answer.text,
        answer.finish,
        answer.tokens_in,
        answer.tokens_out,
        answer.fault,
        float(getattr(answer, "money", 0.0)),
    )
