"""A fitted router behind Ray Serve, and what the gateway makes of it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from graftline.stages.serve.place import BASE, local

logger = logging.getLogger(__name__)


class RouterReplica:
    """A deployment that owns one fitted router and the model that embeds prompts for it. It takes no CPU of its own: it
    computes one short pass a request, where an engine computes one a token.

    Args:
        router: `uri` and `digest` of the router's artefact, and of the embedding model's under `embedder`.

    Raises:
        EngineFailed: an artefact is not what the configuration says.
    """

    def __init__(self, router: Mapping[str, Any]) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # a reused worker process would keep the last one's
        from graftline.stages.lm.embedding import open_embedder
        from graftline.stages.serve.route.route import Fitted

        self.fitted = Fitted(local(router["uri"], router["digest"], ""))
        self.embedder = open_embedder(local(router["embedder"]["uri"], router["embedder"]["digest"], "model"))
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="route")

    async def choose(self, text: str, mu: float | None) -> dict[str, Any]:
        """The `target` for a prompt, each target's `quality` and `cost`, and the `seconds` it took."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, self._choose, text, mu)

    def _choose(self, text: str, mu: float | None) -> dict[str, Any]:
        begun = time.perf_counter()
        choice = self.fitted.choose(self.embedder.embed([text or " "])[0], mu, text)
        found = {"target": choice.target, "quality": dict(choice.quality), "cost": dict(choice.cost)}
        return {**found, "seconds": time.perf_counter() - begun}


async def routed(router: Any, text: str, mu: float | None) -> tuple[str, dict[str, str]]:
    """The target of a request, and the headers that tell of it. Where the router fails, the base answers, and the
    header says so: a request is worth more than its route.

    Args:
        router: a handle on a `RouterReplica` deployment.
    """
    try:
        found = await router.choose.remote(text, mu)
    except Exception as error:
        logger.error("the router failed, the base answers: %s: %s", type(error).__name__, error)
        return BASE, {"x-route": f"{BASE}; fallback"}
    headers = {"x-route": str(found["target"]), "x-route-quality": _listed(found["quality"])}
    if any(found.get("cost", {}).values()):  # where nothing costs anything, there is nothing to tell
        headers["x-route-cost"] = _listed(found["cost"])
    return str(found["target"]), headers


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{target}={value:.3f}" for target, value in sorted(values.items()))
