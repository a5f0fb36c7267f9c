"""Between a sweep and Ray Tune's proxies of its trials: an actor that both talk to."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from ray import tune


class Desk:
    """The actor; every method is one step of an event loop."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.news: dict[str, asyncio.Queue[tuple[dict[str, Any], bool]]] = defaultdict(asyncio.Queue)
        self.answers: dict[str, asyncio.Queue[bool]] = defaultdict(asyncio.Queue)
        self.failed = self.closed = False

    # --- a proxy's side

    async def ask(self, trial: str, config: dict[str, Any]) -> None:
        """Have the trial of a configuration made."""
        await self.requests.put((trial, config))

    async def hear(self, trial: str) -> tuple[dict[str, Any], bool]:
        """The next numbers of a trial, and whether they are the last."""
        return await self.news[trial].get()

    async def answer(self, trial: str, goes_on: bool) -> None:
        """Whether a trial goes on after the numbers it told."""
        await self.answers[trial].put(goes_on)

    # --- the sweep's side

    async def next_request(self, seconds: float) -> tuple[str, dict[str, Any]] | None:
        """What a proxy asked for; None where none did for so long."""
        try:
            return await asyncio.wait_for(self.requests.get(), seconds)
        except TimeoutError:
            return None

    async def tell(self, trial: str, numbers: dict[str, Any], last: bool) -> bool:
        """Tell a proxy its trial's numbers; whether the trial goes on."""
        await self.news[trial].put((numbers, last))
        return not last and not self.closed and await self.answers[trial].get()

    async def fail(self, trial: str) -> None:
        """End the experiment: something that is no trial's own went wrong."""
        self.failed = True
        await self.news[trial].put(({}, True))

    async def close(self) -> None:
        """The experiment is over: whatever still waits ends."""
        self.closed = True
        for waiting in self.answers.values():
            await waiting.put(False)

    async def has_failed(self) -> bool:
        return self.failed


def proxy(config: dict[str, Any], desk: Any) -> None:
    """What Tune runs for each trial."""
    import ray

    trial = tune.get_context().get_trial_id()
    ray.get(desk.ask.remote(trial, config))
    last = False
    while not last:
        numbers, last = ray.get(desk.hear.remote(trial))
        if numbers:
            tune.report(numbers)  # comes back only where Tune lets the trial go on
        if not last:
            ray.get(desk.answer.remote(trial, True))
    if not numbers:
        raise RuntimeError("the trial has no result")  # so that a search does not learn from it


class Ended(tune.Callback):
    """Tells the desk of each trial that Tune is done with, whatever it still waits for."""

    def __init__(self, desk: Any) -> None:
        self.desk = desk

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.desk.answer.remote(trial.trial_id, False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.desk.answer.remote(trial.trial_id, False)


class Trouble(tune.Stopper):
    """Ends the whole experiment where something that is no trial's own went wrong, and a trial at so many steps
    (None: at its end)."""

    def __init__(self, desk: Any, until: int | None = None) -> None:
        self.desk, self.until = desk, until

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.until is not None and result["step"] >= self.until

    def stop_all(self) -> bool:
        import ray

        return bool(ray.get(self.desk.has_failed.remote()))
