"""The gateway's routes: OpenAI's `chat/completions` and `models`, and health."""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from graftline.stages.errors import GraftlineError, PromptTooLong, RowFault
from graftline.stages.serve.chat import ApiError, ChatRequest, Served, chunk, completion, usage

logger = logging.getLogger(__name__)


def create_api(models: Sequence[Served], engines: Mapping[str, Any]) -> FastAPI:
    """The web application.

    Args:
        models: what it offers; no other id is ever answered, least of all by the base.
        engines: name → a handle on an `EngineReplica` deployment.
    """
    api = FastAPI(title="graftline", docs_url=None, redoc_url=None, openapi_url=None)
    offered = {model.id: model for model in models}
    started = int(time.time())

    def find(id: str) -> Served:
        if id not in offered:
            raise ApiError(404, f"The model {id!r} does not exist.", param="model", code="model_not_found")
        return offered[id]

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
    async def chat_completions(request: ChatRequest) -> dict[str, Any] | StreamingResponse:
        model = find(request.model)
        id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        call = request.call(id, model.adapter)
        engine = engines[model.engine]
        about = (id, created, model.id, model.digest[:16])
        if not request.stream:
            try:
                answer = await engine.answer.remote(call)
            except Exception as error:
                raise seen_by_client(error) from error
            return completion(*about, answer)
        events = engine.options(stream=True).stream.remote(call).__aiter__()
        try:
            first = await anext(events)  # a request that fails at once gets its status, not a broken stream
        except Exception as error:
            raise seen_by_client(error) from error
        with_usage = bool(request.stream_options and request.stream_options.include_usage)
        return StreamingResponse(_sse(first, events, about, with_usage), media_type="text/event-stream")

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


async def _sse(
    first: Mapping[str, Any], rest: AsyncIterator[Mapping[str, Any]], about: tuple[str, int, str, str], with_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of a streamed answer; an error on the way ends it as an event of its own."""

    def line(event: Mapping[str, Any]) -> str:
        return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"

    yield line(chunk(*about, {"role": "assistant", "content": ""}))
    event: Mapping[str, Any] | None = first
    try:
        while event is not None:
            if "finish" in event:
                yield line(chunk(*about, {}, event["finish"]))
                if with_usage:
                    yield line(chunk(*about, {}) | {"choices": [], "usage": usage(event)})
            else:
                yield line(chunk(*about, {"content": event["text"]}))
            event = await anext(rest, None)
    except Exception as error:
        yield line(seen_by_client(error).body())
        return
    yield "data: [DONE]\n\n"


def seen_by_client(error: Exception) -> ApiError:
    """What a client is told of an engine's error: a fault of the request in words, anything else without details
    (they may hold paths), which go to the log."""
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
        return ApiError(400, cause.what, param="messages", code=code)
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
