"""The desk between a sweep and Ray Tune's proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from graftline.stages.sweep.proxies import Desk, Trouble


def held(talk: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(talk, 5))


def test_a_trial_from_request_to_end() -> None:
    async def talk() -> None:
        desk = Desk()
        assert await desk.next_request(0.01) is None
        await desk.ask("t", {"point": 1})
        assert await desk.next_request(1.0) == ("t", {"point": 1})
        telling = asyncio.create_task(desk.tell("t", {"loss": 2.0}, False))
        assert await desk.hear("t") == ({"loss": 2.0}, False) and not telling.done()
        await desk.answer("t", True)
        assert await telling is True
        assert await desk.tell("t", {"loss": 1.0}, True) is False
        assert await desk.hear("t") == ({"loss": 1.0}, True)

    held(talk())


def test_nothing_waits_once_the_experiment_is_over() -> None:
    async def talk() -> None:
        desk = Desk()
        telling = asyncio.create_task(desk.tell("t", {"loss": 2.0}, False))
        await desk.hear("t")
        await desk.close()
        assert await telling is False and await desk.tell("other", {"loss": 2.0}, False) is False

    held(talk())


def test_what_is_no_trials_own_ends_the_experiment() -> None:
    async def talk() -> None:
        desk = Desk()
        assert not await desk.has_failed()
        await desk.fail("t")
        assert await desk.has_failed() and await desk.hear("t") == ({}, True)

    held(talk())


def test_a_trial_is_ended_at_the_first_evaluation_at_or_after_a_step() -> None:
    ends = Trouble(None, until=4)
    assert [ends("t", {"step": step}) for step in (0, 3, 4, 6)] == [False, False, True, True]
    assert not Trouble(None)("t", {"step": 10**9})
