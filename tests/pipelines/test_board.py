import asyncio

import pytest

from graftline.pipelines.board import BoardActor, LocalBoard
from graftline.pipelines.budget import Budget, Purse
from graftline.pipelines.failures import Failure


def test_in_the_runs_own_process():
    told = []
    board = LocalBoard(Purse(Budget(tokens=10)), told.append, lambda key, stage, metric: (key, stage, metric))
    board.tell({"kind": "progress", "key": "k"})
    assert board.pay("k", 2, 6, 0.0) == "" and "10 tokens" in board.pay("k", 1, 6, 0.0)
    assert [each["kind"] for each in told] == ["progress", "paid", "paid"] and told[1]["requests"] == 2
    assert board.run("k", "stage") == ("k", "stage", "")


def test_what_is_told_is_taken_once():
    async def talk():
        board = BoardActor(Purse(Budget()))
        assert await board.take(0.01) == []
        await board.tell({"kind": "progress", "key": "a"})
        await board.pay("b", 1, 5, 0.0)
        taken = await board.take(1.0)
        assert await board.take(0.01) == []
        return taken

    assert [each["key"] for each in asyncio.run(talk())] == ["a", "b"]


def test_a_listener_hears_at_once():
    async def talk():
        board = BoardActor(Purse(Budget()))
        listening = asyncio.create_task(board.take(60.0))
        await asyncio.sleep(0)
        await board.tell({"kind": "log", "key": "a"})
        return await asyncio.wait_for(listening, 1.0)

    assert len(asyncio.run(talk())) == 1


@pytest.mark.parametrize("reply", [("artefact", None), (None, Failure("RunError", "diverged"))])
def test_a_stage_that_is_asked_for_is_waited_for(reply):
    async def talk():
        board = BoardActor(Purse(Budget()))
        asked = asyncio.create_task(board.run("sweep", b"stage"))
        (told,) = await board.take(1.0)
        assert (told["kind"], told["key"], told["stage"]) == ("run", "sweep", b"stage")
        await board.reply(told["number"], *reply)
        return await asked

    assert asyncio.run(talk()) == reply


def test_a_watched_stage_waits_for_each_decision():
    async def talk():
        board = BoardActor(Purse(Budget()))
        asked = asyncio.create_task(board.run("sweep", b"stage", "loss", "trial"))
        (told,) = await board.take(1.0)
        assert told["metric"] == "loss"
        decided = []
        for step, goes_on in ((1, True), (2, False)):
            waiting = asyncio.create_task(board.goes_on("trial", step, 0.5))
            assert await board.next_logged("trial") == (step, 0.5) and not waiting.done()
            await board.decide("trial", goes_on)
            decided.append(await waiting)
        await board.reply(told["number"], None, None)
        await asked
        return decided, await board.next_logged("trial")

    assert asyncio.run(asyncio.wait_for(talk(), 5)) == ([True, False], None)


def test_a_watched_stage_in_the_runs_own_process():
    class Named:
        key = "trial"

    board = LocalBoard(Purse(Budget()), lambda told: None, lambda key, stage, metric: board.goes_on("trial", 3, 0.5))
    assert board.run("sweep", Named(), "loss", lambda step, value: (step, value)) == (3, 0.5)


def test_the_budget_is_kept_for_all_workers():
    async def talk():
        board = BoardActor(Purse(Budget(tokens=10, money=1.0)))
        return [await board.pay(key, 1, 4, 0.0) for key in "abc"]

    first, second, third = asyncio.run(talk())
    assert first == second == "" and "12 used" in third
