"""The board between workers and the run: progress is told on it, budgets are kept, other stages are asked for."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from graftline.pipelines.budget import Purse
from graftline.pipelines.failures import Failure
from graftline.pipelines.gates import Gates, GatesActor, RayGate

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact
    from graftline.stages.lm.endpoint import Endpoint
    from graftline.stages.lm.pressure import Gate
    from graftline.stages.stage import Stage

Told = Mapping[str, Any]
"""What a worker tells: `kind` progress, log or paid, the stage's `key`, and that kind's own fields."""


GoesOn = Callable[[int, float], bool]
"""Takes a step and the value of a metric."""


class Board(Protocol):
    """What a worker sees of the board."""

    def tell(self, told: Told) -> None:
        """Tell the run something."""

    def pay(self, key: str, requests: int, tokens: int, money: float) -> str:
        """Count paid requests of a stage; why to stop, where the budget is spent, else ""."""

    def run(self, key: str, stage: Stage, metric: str = "", goes_on: GoesOn | None = None) -> Artefact:
        """Have another stage made for the stage of this key; with `goes_on`, which is asked each time the other one
        logs the metric, whether it goes on."""

    def goes_on(self, key: str, step: int, value: float) -> bool:
        """Whether a watched stage goes on after what it logged."""

    def gate(self, endpoint: Endpoint) -> Gate:
        """The gate that all engines of the run share which ask this server."""


class LocalBoard:
    """A board in the run's own process.

    Args:
        purse: the run's budget.
        hear: takes what is told.
        make: makes a stage for the stage of a key; told which metric of it is watched ("": none).
    """

    def __init__(self, purse: Purse, hear: Callable[[Told], None], make: Callable[[str, Stage, str], Artefact]) -> None:
        self.purse, self.hear, self.make = purse, hear, make
        self._watchers: dict[str, GoesOn] = {}
        self._gates = Gates()

    def tell(self, told: Told) -> None:
        self.hear(told)

    def pay(self, key: str, requests: int, tokens: int, money: float) -> str:
        self.purse.pay(tokens, money)
        self.hear({"kind": "paid", "key": key, "requests": requests, "tokens": tokens, "money": money})
        return self.purse.spent()

    def run(self, key: str, stage: Stage, metric: str = "", goes_on: GoesOn | None = None) -> Artefact:
        if goes_on is not None:
            self._watchers[stage.key] = goes_on
        return self.make(key, stage, metric)

    def goes_on(self, key: str, step: int, value: float) -> bool:
        return self._watchers[key](step, value)

    def gate(self, endpoint: Endpoint) -> Gate:
        return self._gates.gate(endpoint)


class BoardActor:
    """The board as a Ray actor; every method is one step of an event loop."""

    def __init__(self, purse: Purse) -> None:
        self.purse = purse
        self.told: list[Told] = []
        self.fresh = asyncio.Event()
        self.numbers = itertools.count()
        self.asked: dict[int, asyncio.Future[tuple[Artefact | None, Failure | None]]] = {}
        self.logged: dict[str, asyncio.Queue[tuple[int, float] | None]] = defaultdict(asyncio.Queue)
        self.decided: dict[str, asyncio.Queue[bool]] = defaultdict(asyncio.Queue)
        self.gates_actor: Any = None

    async def tell(self, told: Told) -> None:
        self.told.append(told)
        self.fresh.set()

    async def pay(self, key: str, requests: int, tokens: int, money: float) -> str:
        self.purse.pay(tokens, money)
        await self.tell({"kind": "paid", "key": key, "requests": requests, "tokens": tokens, "money": money})
        return self.purse.spent()

    async def take(self, seconds: float) -> list[Told]:
        """All that was told since the last call; waits for something at most so long."""
        try:
            await asyncio.wait_for(self.fresh.wait(), seconds)
        except TimeoutError:
            return []
        self.fresh.clear()
        told, self.told = self.told, []
        return told

    async def run(
        self, key: str, stage: bytes, metric: str = "", watched: str = ""
    ) -> tuple[Artefact | None, Failure | None]:
        """`watched`: key of the stage, where its metric is."""
        number = next(self.numbers)
        future = self.asked[number] = asyncio.get_running_loop().create_future()
        await self.tell({"kind": "run", "key": key, "number": number, "stage": stage, "metric": metric})
        try:
            return await future
        finally:
            if watched:
                await self.logged[watched].put(None)

    async def next_logged(self, watched: str) -> tuple[int, float] | None:
        """What a watched stage logged and now waits with; None where it has ended."""
        found = await self.logged[watched].get()
        if found is None:
            self.logged.pop(watched, None)
        return found

    async def decide(self, watched: str, goes_on: bool) -> None:
        await self.decided[watched].put(goes_on)

    async def goes_on(self, key: str, step: int, value: float) -> bool:
        await self.logged[key].put((step, value))
        return await self.decided[key].get()

    async def gates(self) -> Any:
        """The actor with the gates of the run's servers, started when the first one is asked for; it ends with this
        one, and this one with the run."""
        if self.gates_actor is None:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = ray.get_runtime_context()
            gates: Any = ray.remote(GatesActor)
            self.gates_actor = gates.options(
                name=f"graftline-gates-{here.get_actor_id()}",
                num_cpus=0,
                max_concurrency=10_000,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=here.get_node_id(), soft=False),
            ).remote()
        return self.gates_actor

    async def reply(self, number: int, artefact: Artefact | None, failure: Failure | None) -> None:
        self.asked.pop(number).set_result((artefact, failure))


class RayBoard:
    """A worker's view of the actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def tell(self, told: Told) -> None:
        self.actor.tell.remote(told)

    def pay(self, key: str, requests: int, tokens: int, money: float) -> str:
        import ray

        why: str = ray.get(self.actor.pay.remote(key, requests, tokens, money))
        return why

    def goes_on(self, key: str, step: int, value: float) -> bool:
        import ray

        return bool(ray.get(self.actor.goes_on.remote(key, step, value)))

    def gate(self, endpoint: Endpoint) -> Gate:
        import ray

        return RayGate(ray.get(self.actor.gates.remote()), endpoint)

    def run(self, key: str, stage: Stage, metric: str = "", goes_on: GoesOn | None = None) -> Artefact:
        import ray
        from ray import cloudpickle

        watched = stage.key if goes_on is not None else ""
        reply = self.actor.run.remote(key, cloudpickle.dumps(stage), metric, watched)
        while goes_on is not None and (logged := ray.get(self.actor.next_logged.remote(watched))) is not None:
            self.actor.decide.remote(watched, goes_on(*logged))
        artefact, failure = ray.get(reply)
        if failure is not None:
            raise failure.error()
        found: Artefact = artefact
        return found
