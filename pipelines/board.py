"""The board between workers and the run: progress is told on it, budgets are kept, other stages are asked for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from graftline.pipelines.budget import Purse
from graftline.pipelines.failures import Failure

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact
    from graftline.stages.stage import Stage

Told = Mapping[str, Any]
"""What a worker tells: `kind` progress, log or paid, the stage's `key`, and that kind's own fields."""


class Board(Protocol):
    """What a worker sees of the board."""

    def tell(self, told: Told) -> None:
        """Tell the run something."""

    def pay(self, key: str, requests: int, tokens: int, money: float) -> str:
        """Count paid requests of a stage; why to stop, where the budget is spent, else ""."""

    def run(self, key: str, stage: Stage) -> Artefact:
        """Have another stage made for the stage of this key."""


class LocalBoard:
    """A board in the run's own process.

    Args:
        purse: the run's budget.
        hear: takes what is told.
        make: makes a stage for the stage of a key.
    """

    def __init__(self, purse: Purse, hear: Callable[[Told], None], make: Callable[[str, Stage], Artefact]) -> None:
        self.purse, self.hear, self.make = purse, hear, make

    def tell(self, told: Told) -> None:
        self.hear(told)

    def pay(self, key: str, requests: int, tokens: int, money: float) -> str:
        self.purse.pay(tokens, money)
        self.hear({"kind": "paid", "key": key, "requests": requests, "tokens": tokens, "money": money})
        return self.purse.spent()

    def run(self, key: str, stage: Stage) -> Artefact:
        return self.make(key, stage)


class BoardActor:
    """The board as a Ray actor; every method is one step of an event loop."""

    def __init__(self, purse: Purse) -> None:
        self.purse = purse
        self.told: list[Told] = []
        self.fresh = asyncio.Event()
        self.numbers = itertools.count()
        self.asked: dict[int, asyncio.Future[tuple[Artefact | None, Failure | None]]] = {}

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

    async def run(self, key: str, stage: bytes) -> tuple[Artefact | None, Failure | None]:
        number = next(self.numbers)
        future = self.asked[number] = asyncio.get_running_loop().create_future()
        await self.tell({"kind": "run", "key": key, "number": number, "stage": stage})
        return await future

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

    def run(self, key: str, stage: Stage) -> Artefact:
        import ray
        from ray import cloudpickle

        artefact, failure = ray.get(self.actor.run.remote(key, cloudpickle.dumps(stage)))
        if failure is not None:
            raise failure.error()
        found: Artefact = artefact
        return found
