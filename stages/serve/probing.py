"""Asking a service over HTTP, and keeping what it said."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graftline.stages.errors import EngineFailed


def exchanges(url: str, requests: Sequence[Mapping[str, Any]], timeout: float = 600) -> Iterator[dict[str, Any]]:
    """One entry of a transcript for each request, in order: model, request, status, text (of an error its message),
    usage (tokens; of an error none) and seconds.

    Raises:
        EngineFailed: no answer, or a server error: the world's fault, so that nothing is committed.
    """
    import httpx

    with httpx.Client(timeout=timeout, trust_env=False) as client:  # a proxy has no place between us and ourselves
        for request in requests:
            where = f"probe of {request['model']}"
            begun = time.perf_counter()
            try:
                reply = client.post(f"{url}/v1/chat/completions", json=dict(request))
            except httpx.HTTPError as error:
                raise EngineFailed(f"no answer: {error!r}", where=where, do="run it again") from error
            seconds = round(time.perf_counter() - begun, 3)
            if reply.status_code >= 500:
                raise EngineFailed(
                    f"status {reply.status_code}: {reply.text[:500]}", where=where, do="see the replicas' logs"
                )
            said = reply.json()
            text = said["error"]["message"] if "error" in said else said["choices"][0]["message"]["content"]
            yield {
                "model": request["model"],
                "request": dict(request),
                "status": reply.status_code,
                "text": text,
                "usage": said.get("usage") or {},
                "seconds": seconds,
            }
