"""A small OpenAI-compatible server for tests: real HTTP on localhost, seeded answers, and faults by option."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

WORDS = ("printer", "parcel", "invoice", "was", "late", "broken", "lost", "again", "and", "nobody", "called", "today")


@dataclass
class FakeOpenAI:
    """A server that answers each conversation with a sentence drawn from the seed and what was asked.

    Faults are drawn from the seed, the conversation and how often it was asked, so that a run of tests has the same
    ones every time, whatever the order.

    Args:
        seed: of answers and faults.
        key: the key it wants (empty: any).
        models: the models it has.
        p429, p500, bad_json: shares of requests (0 to 1) that meet this fault.
        retry_after: what a 429 or 503 says (None: nothing).
        slow: seconds each answer takes.
        context: words a conversation may have.
        over_long: whether answers run on past `max_tokens`, saying so.
        outage: whether everything is a 503; may be switched while it runs.
        counts: whether answers say how many tokens they took.
        at_once: requests it takes at the same time; further ones are told 429.
    """

    seed: int = 0
    key: str = ""
    models: tuple[str, ...] = ("fake",)
    p429: float = 0.0
    p500: float = 0.0
    bad_json: float = 0.0
    retry_after: str | None = None
    slow: float = 0.0
    context: int = 10_000
    over_long: bool = False
    outage: bool = False
    counts: bool = True
    at_once: int = 1_000
    answer: Any = None
    """A function of the request's body, instead of the drawn sentence."""
    log: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)
    """Time, status and body of every chat request."""
    most_at_once: int = 0

    def __enter__(self) -> Self:
        self._lock, self._seen, self._flying = threading.Lock(), Counter[str](), 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.models_asked(self)

            def do_POST(self) -> None:
                fake.chat_asked(self)

            def log_message(self, *arguments: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def statuses(self) -> Counter[int]:
        """How many chat requests had each status."""
        return Counter(status for _, status, _ in self.log)

    def models_asked(self, handler: BaseHTTPRequestHandler) -> None:
        if self._refused(handler):
            return
        _send(handler, 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    def chat_asked(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self._flying += 1
            self.most_at_once = max(self.most_at_once, self._flying)
            crowded = self._flying > self.at_once
        try:
            status, value = self._chat(handler, body, crowded)
        finally:
            with self._lock:
                self._flying -= 1
        with self._lock:
            self.log.append((time.monotonic(), status, body))
        headers = {"retry-after": self.retry_after} if status in (429, 503) and self.retry_after else {}
        _send(handler, status, value, headers)

    def _refused(self, handler: BaseHTTPRequestHandler) -> bool:
        if self.key and handler.headers.get("authorization") != f"Bearer {self.key}":
            _send(handler, 401, _error("Incorrect API key provided", "invalid_api_key"))
            return True
        return False

    def _chat(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], crowded: bool) -> tuple[int, Any]:
        if self.key and handler.headers.get("authorization") != f"Bearer {self.key}":
            return 401, _error("Incorrect API key provided", "invalid_api_key")
        if self.outage:
            return 503, _error("the server is down", "service_unavailable")
        if crowded:
            return 429, _error("Rate limit reached: too many tokens a minute", "rate_limit_exceeded")
        if body["model"] not in self.models:
            return 404, _error(f"The model {body['model']} does not exist", "model_not_found")
        words = sum(len(turn["content"].split()) for turn in body["messages"])
        if words > self.context:
            return 400, _error(f"This model's maximum context length is {self.context}", "context_length_exceeded")
        asked = hashlib.sha256(json.dumps([self.seed, body["messages"], body.get("seed")]).encode()).hexdigest()
        with self._lock:
            self._seen[asked] += 1
            draw = random.Random(f"{asked}/{self._seen[asked]}").random()
        if self.slow:
            time.sleep(self.slow)
        for share, status in ((self.p429, 429), (self.p500, 500)):
            if draw < share:
                return status, _error("try again", "rate_limit_exceeded" if status == 429 else "server_error")
            draw -= share
        if draw < self.bad_json:
            return 200, b'{"choices": [{"message": {"role": "assist'
        return 200, self._completion(asked, body, words)

    def _completion(self, asked: str, body: dict[str, Any], words: int) -> dict[str, Any]:
        draw = random.Random(asked)
        most = body.get("max_tokens") or 16
        said = [draw.choice(WORDS) for _ in range(draw.randint(3, 9))]
        finish = "stop"
        if self.over_long or len(said) > most:
            said, finish = (said * most)[: most * (3 if self.over_long else 1)], "length"
        text = " ".join(said) if self.answer is None else self.answer(body)
        usage = {"prompt_tokens": words, "completion_tokens": len(text.split()), "total_tokens": 0}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return {"object": "chat.completion", "choices": [choice], **({"usage": usage} if self.counts else {})}


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


def _send(handler: BaseHTTPRequestHandler, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(data)))
    for name, each in (headers or {}).items():
        handler.send_header(name, each)
    handler.end_headers()
    handler.wfile.write(data)
