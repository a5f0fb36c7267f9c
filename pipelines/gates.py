"""One gate for each server, shared by all engines of a run: on Ray, in one small actor; else in the run's own process.

How many requests are in flight, how long a server wants to be left alone, and whether it answers at all is then known
to the whole run: what one worker is told (429, Retry-After, an outage), all of them keep to.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from graftline.pipelines.failures import Failure
from graftline.stages.errors import EngineFailed
from graftline.stages.lm.pressure import LOOK_AROUND, Pressure, refuse_unwanted

if TYPE_CHECKING:
    from graftline.stages.lm.endpoint import Endpoint

BEAT, SILENT = 3.0, 15.0
"""Seconds between an engine's signs of life, and without one after which its places are free again (a killed worker
takes its own with it)."""

Server = tuple[str, str, str]
"""What has limits of its own: an address, the name of its key, a model."""


class Gates:
    """The gates of a run, by server. Where the same server is asked in two ways, the more careful one holds."""

    def __init__(self) -> None:
        self.gates: dict[Server, Pressure] = {}
        self._adding = threading.Lock()

    def gate(self, endpoint: Endpoint) -> Pressure:
        """The gate of an endpoint."""
        return self.opened(server_of(endpoint), endpoint.concurrency, endpoint.patience)

    def opened(self, server: Server, most: int, patience: float) -> Pressure:
        """The gate of a server, with at most so many requests in flight and so much patience."""
        with self._adding:
            gate = self.gates.setdefault(server, Pressure(server[-1], most, patience))
            gate.most, gate.patience = min(gate.most, most), min(gate.patience, patience)
            gate.limit = min(gate.limit, float(gate.most))
        return gate


def server_of(endpoint: Endpoint) -> Server:
    """Whose limits an endpoint meets."""
    return endpoint.url.rstrip("/"), endpoint.key_env or "", endpoint.model


class GatesActor:
    """The gates as a Ray actor; every method is one step of an event loop. It counts whose places are taken, so that
    those of a worker that died come back."""

    def __init__(self, silent: float = SILENT) -> None:
        self.silent, self.gates = silent, Gates()
        self.taken: Counter[tuple[Server, str]] = Counter()
        self.heard: dict[str, float] = {}
        self.changed = asyncio.Event()

    async def open(self, server: Server, most: int, patience: float) -> None:
        self.gates.opened(server, most, patience)

    async def enter(self, server: Server, client: str, rest: float, seconds: float) -> float | Failure | None:
        """A place, as the time at which it was given; None where there was none within so many seconds; or why nobody
        gets one any more."""
        gate, began = self.gates.gates[server], time.monotonic()
        try:
            while True:
                await self.alive(client)
                self._forget_the_silent()
                wait = gate.place(began + rest)
                if not wait:
                    self.taken[server, client] += 1
                    return gate.clock()
                left = began + seconds - time.monotonic()
                if left <= 0:
                    return None
                changed = self.changed
                try:
                    await asyncio.wait_for(changed.wait(), min(wait, left))
                except TimeoutError:
                    continue
        except EngineFailed as error:
            return Failure.of(error, "")

    async def answered(self, server: Server, client: str) -> None:
        self._returned(server, client).answered()

    async def pushed_back(
        self, server: Server, client: str, entered: float, why: str, after: float | None, busy: bool
    ) -> int:
        return self._returned(server, client).pushed_back(entered, why, after, busy)

    async def left(self, server: Server, client: str) -> None:
        self._returned(server, client).left()

    async def alive(self, client: str) -> None:
        """A sign of life."""
        self.heard[client] = time.monotonic()

    def _returned(self, server: Server, client: str) -> Pressure:
        """The gate at which a client gives a place back; it tells the waiting."""
        gate = self.gates.gates[server]
        if self.taken[server, client]:
            self.taken[server, client] -= 1
        else:  # it was silent for so long that its places were given to others
            gate.flying += 1
        self.changed.set()
        self.changed = asyncio.Event()
        return gate

    def _forget_the_silent(self) -> None:
        now = time.monotonic()
        for client in [client for client, last in self.heard.items() if now - last > self.silent]:
            del self.heard[client]
            for server, gate in self.gates.gates.items():
                for _ in range(self.taken.pop((server, client), 0)):
                    gate.left()


class RayGate:
    """A worker's view of one gate of the actor.

    Args:
        actor: the actor.
        endpoint: the endpoint whose server it is before.
    """

    def __init__(self, actor: Any, endpoint: Endpoint) -> None:
        import ray

        self.actor, self.server, self.client = actor, server_of(endpoint), secrets.token_hex(8)
        ray.get(actor.open.remote(self.server, endpoint.concurrency, endpoint.patience))
        self._closed = threading.Event()
        threading.Thread(target=self._live, name="gate", daemon=True).start()

    def enter(self, stop: threading.Event | None = None, rest: float = 0.0) -> float:
        import ray

        until = time.monotonic() + rest
        while True:
            refuse_unwanted(stop, self.server[-1])
            rest = max(0.0, until - time.monotonic())
            try:
                found = ray.get(self.actor.enter.remote(self.server, self.client, rest, LOOK_AROUND))
            except ray.exceptions.RayError as error:
                raise EngineFailed(
                    f"what the run's workers share is gone: {type(error).__name__}", where=self.server[-1],
                    do="run again to continue",
                ) from error  # fmt: skip
            if isinstance(found, Failure):
                raise found.error()
            if found is not None:
                return float(found)

    def answered(self) -> None:
        self.actor.answered.remote(self.server, self.client)

    def pushed_back(self, entered: float, why: str, after: float | None = None, busy: bool = True) -> int:
        import ray

        try:
            return int(ray.get(self.actor.pushed_back.remote(self.server, self.client, entered, why, after, busy)))
        except ray.exceptions.RayError:  # the next `enter` says so
            return 0

    def left(self) -> None:
        self.actor.left.remote(self.server, self.client)

    def close(self) -> None:
        self._closed.set()

    def _live(self) -> None:
        while not self._closed.wait(BEAT):
            self.actor.alive.remote(self.client)
