"""The endpoint engine: an OpenAI-compatible server behind the engine's protocol.

Threads send requests through one gate (`pressure.py`). An error is told apart by whose fault it is: of the request (a
`RowFault` or `PromptTooLong`, after all others are answered, and those answers are not paid for again), of everything
that is asked (`EndpointRefused`, at once), or of the world (asked again, then `EngineFailed`).
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from graftline.stages.errors import (
    AdapterMismatch,
    EndpointRefused,
    EngineFailed,
    GraftlineError,
    PromptTooLong,
    RowFault,
)
from graftline.stages.lm.endpoint import Endpoint, no_logprobs
from graftline.stages.lm.engine import Answer, Finish, Messages, Request
from graftline.stages.lm.pressure import Pressure, pause
from graftline.stages.rows import digest

TOO_LONG = ("context_length_exceeded", "context length", "context window", "too many tokens", "prompt is too long",
            "input is too long", "maximum prompt length")  # fmt: skip
NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance")
FILTERED = ("content_filter", "content_policy_violation", "content_management_policy")
LOOK_UP = 5.0
"""Seconds to look at a server before a run."""
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
        pressure: the gate (None: one of its own).
    """

    reproducible = False
    why = "answered by a server, which may answer differently next time"

    def __init__(self, endpoint: Endpoint, adapters: Mapping[str, Path], pressure: Pressure | None = None) -> None:
        self.endpoint, self.model = endpoint, endpoint.model
        self.digest = hashlib.sha256(f"endpoint:{endpoint.model}".encode()).hexdigest()
        for name, place in adapters.items():
            self.load_adapter(name, place)
        self.pressure = pressure or Pressure(endpoint.model, endpoint.concurrency, endpoint.patience)
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
        self._closed = False

    def generate(self, requests: Sequence[Request], on_answer: Callable[[Answer], None] | None = None) -> list[Answer]:
        for request in requests:
            self._refuse_adapter(request.adapter)
        found: dict[int, Answer] = {}
        stop, faults = Stop(), list[tuple[int, GraftlineError]]()
        flying: dict[Future[Answer], int] = {}
        try:
            for place, request in enumerate(requests):
                flying[self._submitted(request, stop)] = place
            left: set[Future[Answer]] = set(flying)
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for each in done:
                    try:
                        found[flying[each]] = each.result()
                    except (RowFault, PromptTooLong) as error:
                        faults.append((flying[each], error))
                        continue
                    if on_answer is not None:
                        on_answer(found[flying[each]])
        except BaseException as error:
            stop.because(error)
            for each in flying:
                each.cancel()
            wait(flying)
            self._keep(requests, flying, {} if on_answer is not None else found)
            raise stop.why or error from None
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

    def logprobs(self, rows: Sequence[Messages], adapter: str | None = None, whole: bool = False) -> list[list[float]]:
        raise no_logprobs(self.model)

    def load_adapter(self, name: str, directory: Path) -> None:
        raise AdapterMismatch("a server takes no adapters of ours", where=self.model, do="use an Llm")

    def unload_adapter(self, name: str) -> None:
        return None

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        self.pressure.hold(True)
        try:
            yield
        finally:
            self.pressure.hold(False)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.pressure.stop("the engine is closed", "open it again")
            self._threads.shutdown(wait=False)  # what waits ends at the gate
            self._http.close()

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
            raise self._refused_key(reply)
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
            entered = self.pressure.enter(stop, rest)
            try:
                answer = self._sent(request)
            except Again as again:
                self.pressure.pushed_back(entered, again.why, again.after, again.busy)
                # While nobody is answered it is no fault of this request.
                if not again.busy and self.pressure.answers != seen:
                    failures, seen = failures + 1, self.pressure.answers
                rest = 0.0 if again.busy else pause(failures)
                if failures > self.endpoint.retries:
                    raise EngineFailed(
                        f"the server failed {failures} times at one request, last: {again.why}",
                        where=f"{self.model}, request {request.id}",
                        do="look at the server's log; run it again",
                    ) from None
            except (RowFault, PromptTooLong):
                self.pressure.answered()
                raise
            except BaseException:
                self.pressure.left()
                raise
            else:
                self.pressure.answered()
                return answer

    def _sent(self, request: Request) -> Answer:
        try:
            reply = self._http.post(f"{self.endpoint.url.rstrip('/')}/chat/completions", json=self._body(request))
        except httpx.TimeoutException:
            raise Again(f"no answer within {self.endpoint.timeout:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Again(f"no connection: {type(error).__name__}") from None
        except RuntimeError as error:  # the client was closed
            raise EngineFailed("the engine is closed", where=self.model, do="open it again") from error
        if reply.status_code == 200:
            return self._read(request, reply)
        raise self._fault(request, reply)

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed % 2**31,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.prefix:
            if self.endpoint.prefix == "ask":
                last = body["messages"][-1]
                if last["role"] != "user":
                    body["messages"].append(last := {"role": "user", "content": ""})
                last["content"] = f"{last['content']}\n\n{GO_ON}{request.prefix}".strip()
            else:
                turn = {"role": "assistant", "content": request.prefix}
                marked = self.endpoint.prefix == "mark"
                body["messages"].append({**turn, "prefix": True} if marked else turn)
                if not marked:
                    body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def _read(self, request: Request, reply: httpx.Response) -> Answer:
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
        if request.prefix and self.endpoint.prefix == "ask":
            text = text.removeprefix(request.prefix)
        for stop in request.sampling.stop:  # some servers leave it in
            text = text.partition(stop)[0]
        # A server that counts nothing: about four bytes a token.
        sent = sum(len(message["content"].encode()) for message in request.messages)
        tokens_in = counts[0] if isinstance(counts[0], int) else sent // 4 + 1
        tokens_out = counts[1] if isinstance(counts[1], int) else len(text.encode()) // 4 + 1
        money = (tokens_in * self.endpoint.price_in + tokens_out * self.endpoint.price_out) / 1e6
        finish: Finish = "length" if ended == "length" else "stop"
        return PricedAnswer(request.id, text, finish, tokens_in, tokens_out, money)

    def _fault(self, request: Request, reply: httpx.Response) -> Exception:
        status, (message, code) = reply.status_code, _message(reply)
        where = f"request {request.id}"
        if status in (401, 403):
            return self._refused_key(reply)
        if status in (404, 405):
            return EndpointRefused(
                f"the server does not know this model or address ({status}: {message})",
                where=f"{self.model} at Endpoint.url",
                do="check the model's name, and that the url ends as in https://host/v1",
            )
        if status == 402 or code in NO_MONEY:
            return EngineFailed(f"the account is empty ({message})", where=self.model, do="fill it and run again")
        if status == 429:  # may speak of "too many tokens", too: a minute
            return Again(f"429: {message}", _retry_after(reply), busy=True)
        if status == 413 or (status in (400, 422) and any(mark in f"{code} {message}".lower() for mark in TOO_LONG)):
            return PromptTooLong(f"the server refuses the length: {message}", where=where, do="shorten it")
        if status in (408, 409, 425) or status >= 500:
            after = _retry_after(reply)
            return Again(f"{status}: {message}", after, busy=status == 503 or after is not None)
        if status in (400, 422) and any(mark in f"{code} {message}".lower() for mark in FILTERED):
            return RowFault(f"the server's filter refuses it: {message}", where=where)
        if status in (400, 422):
            return RowFault(f"the server refuses it ({status}): {message}", where=where)
        return EndpointRefused(
            f"the server answered {status}: {message}", where=self.model, do="check Endpoint.url and key_env"
        )

    def _refused_key(self, reply: httpx.Response) -> EndpointRefused:
        name = self.endpoint.key_env
        return EndpointRefused(
            f"the server refuses {f'the key in {name}' if name else 'a request without a key'} ({reply.status_code})",
            where="Endpoint.key_env",
            do="set the right key where stages run" if name else "name the environment variable with the key",
        )

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


def _retry_after(reply: httpx.Response) -> float | None:
    """Seconds the server asks to be left alone: a number, or a date."""
    said = reply.headers.get("retry-after", "").strip()
    try:
        if re.fullmatch(r"\d{1,9}(\.\d*)?", said):
            return float(said)
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time()) if said else None
    except ValueError:
        return None


def _asked(request: Request) -> str:
    """What a request asks, whatever its id."""
    return digest({**asdict(request), "id": ""})


def _renamed(answer: Answer, id: str) -> Answer:
    return PricedAnswer(
        id, answer.text, answer.finish, answer.tokens_in, answer.tokens_out, float(getattr(answer, "money", 0.0))
    )
