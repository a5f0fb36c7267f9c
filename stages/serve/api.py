"""The gateway's routes: OpenAI's `chat/completions`, `completions` and `models`, and health."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from graftline.stages.errors import GraftlineError, PromptTooLong, RowFault
from graftline.stages.serve.chat import ApiError, Asked, ChatRequest, Served, chunk, completion, usage
from graftline.stages.serve.completions import CompletionRequest, text_chunk, text_completion
from graftline.stages.serve.place import AUTO
from graftline.stages.serve.routing import routed

logger = logging.getLogger(__name__)


Head = tuple[str, int, str, str]
"""Of an answer: its id, when it was made, the model that made it, and that model's fingerprint."""
Event = Mapping[str, Any]
"""What an engine says of a streamed answer: a `text`, or at last its `finish` and counts."""
Shown = Callable[[int, Mapping[str, Any]], dict[str, Any]]
"""An engine's event of a call, by the call's place, as the client sees it."""


def create_api(models: Sequence[Served], engines: Mapping[str, Any], router: Any = None) -> FastAPI:
    """The web application.

    Args:
        models: what it offers; no other id is ever answered, least of all by the base.
        engines: name → a handle on an `EngineReplica` deployment.
        router: a handle on a `RouterReplica` deployment, where `auto` is offered.
    """
    api = FastAPI(title="graftline", docs_url=None, redoc_url=None, openapi_url=None)
    offered = {model.id: model for model in models}
    started = int(time.time())

    def find(id: str, param: str = "model") -> Served:
        if id not in offered:
            raise ApiError(404, f"The {param} {id!r} does not exist.", param=param, code="model_not_found")
        return offered[id]

    async def choose(request: Asked, text: str) -> tuple[Served, dict[str, str]]:
        """Who answers a request, and what a header says of the choice. An adapter that is named is never routed."""
        model = find(request.model)
        if request.adapter is not None:
            adapter = find(request.adapter, "adapter")
            if adapter.adapter is None or model.id not in (AUTO, adapter.id, adapter.parent):
                belongs = f"belongs to {adapter.parent!r}" if adapter.adapter else "is a model of its own"
                raise ApiError(
                    400, f"{adapter.id!r} {belongs}, it is no adapter of {model.id!r}.", param="adapter",
                    code="adapter_mismatch",
                )  # fmt: skip
            return adapter, {}
        if model.id != AUTO:
            return model, {}
        target, headers = await routed(router, text, request.mu)
        return offered[target], headers

    def listing(model: Served) -> dict[str, Any]:
        return {
            "id": model.id,
            "object": "model",
            "created": started,
            "owned_by": "graftline",
            "root": model.root,
            "parent": model.parent,
            "digest": model.digest,
        }

    @api.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [listing(model) for model in models]}

    @api.get("/v1/models/{id}")
    async def one_model(id: str) -> dict[str, Any]:
        return listing(find(id))

    @api.get("/health")
    async def health() -> dict[str, Any]:
        for engine in engines.values():
            try:
                await engine.health.remote()
            except Exception as error:
                raise seen_by_client(error) from error
        return {"status": "ok"}

    @api.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: ChatRequest) -> JSONResponse | StreamingResponse:
        model, headers = await choose(request, request.routed)
        head: Head = (f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model.id, model.digest[:16])
        calls = request.calls(head[0], model.adapter)
        if not request.stream:
            return JSONResponse(completion(*head, await answered(model, calls, "messages")), headers=headers)

        def shown(place: int, event: Mapping[str, Any]) -> dict[str, Any]:
            if "finish" in event:
                return chunk(*head, place, {}, event["finish"])
            return chunk(*head, place, {"content": event["text"]})

        opening = [chunk(*head, place, {"role": "assistant", "content": ""}) for place in range(len(calls))]
        return await streamed(model, calls, request, shown, headers, "messages", opening)

    @api.post("/v1/completions", response_model=None)
    async def completions(request: CompletionRequest) -> JSONResponse | StreamingResponse:
        model, headers = await choose(request, request.routed)
        head: Head = (f"cmpl-{uuid.uuid4().hex}", int(time.time()), model.id, model.digest[:16])
        calls = request.calls(head[0], model.adapter)
        if not request.stream:
            answers = await answered(model, calls, "prompt")
            return JSONResponse(text_completion(*head, answers, request.choices), headers=headers)

        def shown(place: int, event: Mapping[str, Any]) -> dict[str, Any]:
            return text_chunk(*head, place, event.get("text", ""), event.get("finish"))

        return await streamed(model, calls, request, shown, headers, "prompt")

    async def answered(model: Served, calls: Sequence[Mapping[str, Any]], param: str) -> list[Mapping[str, Any]]:
        """Whole answers, side by side; where one fails, so does the request."""
        try:
            return await asyncio.gather(*(engines[model.engine].answer.remote(call) for call in calls))
        except Exception as error:
            raise seen_by_client(error, param) from error

    async def streamed(
        model: Served, calls: Sequence[Mapping[str, Any]], request: Asked, shown: Shown, headers: Mapping[str, str],
        param: str, opening: Sequence[Mapping[str, Any]] = (),
    ) -> StreamingResponse:  # fmt: skip
        """Answers in pieces, those of all calls as they come."""
        engine = engines[model.engine].options(stream=True)
        events = side_by_side([engine.stream.remote(call) for call in calls])
        try:
            first = await anext(events)  # a request that fails at once gets its status, not a broken stream
        except Exception as error:
            raise seen_by_client(error, param) from error
        with_usage = bool(request.stream_options and request.stream_options.include_usage)
        lines = _sse(opening, first, events, shown, request.choices if with_usage else 0)
        return StreamingResponse(lines, media_type="text/event-stream", headers=dict(headers))

    @api.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        message = first["msg"].removeprefix("Value error, ")
        shown = ApiError(400, f"{param}: {message}" if param else message, param=param)
        return JSONResponse(shown.body(), 400)

    @api.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> JSONResponse:
        shown = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(shown.body(), error.status_code, headers=dict(error.headers or {}))

    return api


async def side_by_side(streams: Sequence[AsyncIterable[Event]]) -> AsyncGenerator[tuple[int, Event]]:
    """Events of all streams as they come, each with its stream's place; the first error ends all of them."""
    heard: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue()

    async def hear(place: int, events: AsyncIterable[Event]) -> None:
        try:
            async for event in events:
                await heard.put((place, event))
        except Exception as error:
            await heard.put((place, error))
        else:
            await heard.put((place, None))

    hearing = [asyncio.create_task(hear(place, events)) for place, events in enumerate(streams)]
    left = len(hearing)
    try:
        while left:
            place, event = await heard.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                left -= 1
            else:
                yield place, event
    finally:  # the client went away, or one of them failed
        for task in hearing:
            task.cancel()


async def _sse(
    opening: Sequence[Mapping[str, Any]], first: tuple[int, Event], others: AsyncGenerator[tuple[int, Event]],
    shown: Shown, choices: int,
) -> AsyncIterator[str]:  # fmt: skip
    """Server-sent events of streamed answers; an error on the way ends them as an event of its own. `choices`: of each
    prompt, where tokens are to be counted (0: they are not)."""

    def line(event: Mapping[str, Any]) -> str:
        return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"

    for each in opening:
        yield line(each)
    ended: dict[int, Event] = {}
    place, event = first
    try:
        async with contextlib.aclosing(others):
            while True:
                last = shown(place, event)
                yield line(last)
                if "finish" in event:
                    ended[place] = event
                try:
                    place, event = await anext(others)
                except StopAsyncIteration:
                    break
        if choices:
            counts = usage([ended[place] for place in sorted(ended)], choices)
            yield line({**last, "choices": [], "usage": counts})
    except Exception as error:
        yield line(seen_by_client(error).body())
        return
    yield "data: [DONE]\n\n"


def seen_by_client(error: Exception, param: str = "messages") -> ApiError:
    """What a client is told of an engine's error: a fault of the request in words, anything else without details
    (they may hold paths), which go to the log. `param`: the field that holds what was asked."""
    from ray.serve.exceptions import BackPressureError

    cause = getattr(error, "cause", None) or error  # Ray wraps what was raised in another process
    if isinstance(cause, ApiError):
        return cause
    if isinstance(cause, BackPressureError):
        wait = {"Retry-After": str(math.ceil(cause.retry_after_s or 1))}
        return ApiError(
            429, "Too many requests are waiting; try again later.", kind="rate_limit_error",
            code="rate_limit_exceeded", headers=wait,
        )  # fmt: skip
    if isinstance(cause, (PromptTooLong, RowFault)):
        code = "context_length_exceeded" if isinstance(cause, PromptTooLong) else None
        return ApiError(400, cause.what, param=param, code=code)
    reference = uuid.uuid4().hex[:8]
    logger.error("%s: %s: %s", reference, type(cause).__name__, cause)
    if isinstance(cause, GraftlineError) or _unreachable(cause):
        return ApiError(
            503, f"The model cannot answer now ({reference}).", kind="server_error", code="engine_unavailable",
            headers={"Retry-After": "5"},
        )  # fmt: skip
    return ApiError(500, f"The server failed to answer ({reference}).", kind="server_error", code="internal_error")


def _unreachable(error: BaseException) -> bool:
    from ray.exceptions import RayActorError, RaySystemError
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

    return isinstance(error, (RayActorError, RaySystemError, DeploymentUnavailableError, ReplicaUnavailableError))
