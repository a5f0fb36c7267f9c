"""The gates of a run: never more requests in flight than asked for, and what one worker is told holds for all."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from graftline.pipelines import run
from graftline.pipelines.failures import Failure
from graftline.pipelines.gates import Gates, GatesActor, RayGate
from graftline.stages import Endpoint, generate, read
from graftline.stages.lm.endpoint_engine import EndpointEngine

from ..fake_openai import FakeOpenAI

SERVER = ("http://localhost/v1", "", "m")


async def actor(most: int = 2, patience: float = 300.0, silent: float = 15.0) -> GatesActor:
    gates = GatesActor(silent)
    await gates.open(SERVER, most, patience)
    gates.gates.gates[SERVER].limit = float(most)
    return gates


def enter(gates: GatesActor, client: str, rest: float = 0.0, seconds: float = 0.05) -> Any:
    return gates.enter(SERVER, client, rest, seconds)


def test_a_server_has_one_gate_and_the_more_careful_of_two_holds() -> None:
    gates = Gates()
    one = gates.gate(Endpoint("m", url="http://a/v1/", concurrency=8, patience=50.0))
    assert gates.gate(Endpoint("m", url="http://a/v1", concurrency=3, prefix="mark")) is one
    assert (one.most, one.patience, one.limit) == (3, 50.0, 3.0)
    for model, url, key in (("n", "http://a/v1", None), ("m", "http://b/v1", None), ("m", "http://a/v1", "KEY")):
        assert gates.gate(Endpoint(model, url=url, key_env=key)) is not one


def test_places_are_of_all_clients_together() -> None:
    async def steps() -> None:
        gates = await actor(most=2)
        assert await enter(gates, "a") and await enter(gates, "b")
        assert await enter(gates, "b") is None, "both are taken"
        waiting = asyncio.create_task(enter(gates, "b", seconds=5.0))
        await asyncio.sleep(0.01)
        await gates.answered(SERVER, "a")
        assert isinstance(await asyncio.wait_for(waiting, 1), float), "it is told at once"

    asyncio.run(steps())


def test_what_one_is_told_holds_for_all() -> None:
    async def steps() -> None:
        gates = await actor(most=8)
        entered = await enter(gates, "a")
        assert await gates.pushed_back(SERVER, "a", entered, "429", 0.2, True) == 0
        before = gates.gates.gates[SERVER].clock()
        assert await enter(gates, "b", seconds=0.1) is None
        assert await enter(gates, "b", seconds=1.0) - before >= 0.19
        assert gates.gates.gates[SERVER].places == 4, "and asks half as hard"

    asyncio.run(steps())


def test_an_outage_ends_it_for_all() -> None:
    async def steps() -> None:
        gates = await actor(patience=300.0)
        await gates.pushed_back(SERVER, "a", await enter(gates, "a"), "503: down", 3600.0, True)
        found = await enter(gates, "b")
        assert isinstance(found, Failure) and found.type == "EngineFailed" and "503: down" in found.what

    asyncio.run(steps())


def test_places_of_a_client_that_died_come_back() -> None:
    async def steps() -> None:
        gates = await actor(most=2, silent=0.2)
        for _ in range(2):
            assert await enter(gates, "dead")
        assert await enter(gates, "b") is None
        assert await enter(gates, "b", seconds=2.0)
        assert gates.gates.gates[SERVER].flying == 1
        await gates.answered(SERVER, "dead")  # it was only slow
        assert gates.gates.gates[SERVER].flying == 1, "a place is given back once"

    asyncio.run(steps())


class Asks:
    """An engine in a process of its own."""

    def __init__(self, actor: Any, name: str, url: str, concurrency: int) -> None:
        endpoint = Endpoint("fake", url=url, concurrency=concurrency)
        self.name, self.engine = name, EndpointEngine(endpoint, {}, RayGate(actor, endpoint))

    def ask(self, count: int) -> int:
        from graftline.stages.lm.engine import Request

        asked = [Request(f"{n:03d}", ({"role": "user", "content": f"{self.name} {n}"},)) for n in range(count)]
        return len(self.engine.generate(asked))


@pytest.mark.real
def test_two_workers_never_exceed_the_runs_concurrency_and_rest_together(ray_cluster: Any) -> None:
    import ray

    remote: Any = ray.remote
    gates = remote(GatesActor).options(num_cpus=0, max_concurrency=1000).remote()
    with FakeOpenAI(slow=0.02) as fake:
        workers = [remote(Asks).options(num_cpus=0).remote(gates, name, fake.url, 4) for name in ("one", "two")]
        assert ray.get([worker.ask.remote(60) for worker in workers]) == [60, 60]
        assert fake.most_at_once == 4, "together, although each alone would ask as much"
        turns = [body["messages"][0]["content"].split()[0] for _, _, body in fake.log]
        assert len(set(turns[len(turns) // 4 : len(turns) // 2])) == 2, "side by side"

        # One request of one worker is refused, and both leave the server alone for as long as it says.
        fake.log, fake.retry_after, asked, chat = [], "1", itertools.count(), fake._chat
        fake._chat = lambda *given: (429, {"error": "slowly"}) if next(asked) == 40 else chat(*given)  # type: ignore[method-assign]
        assert ray.get([worker.ask.remote(60) for worker in workers]) == [60, 60]
        (refused,) = [at for at, status, _ in fake.log if status == 429]
        after = sorted(at - refused for at, _, _ in fake.log if at > refused)
        assert [each for each in after if 0.1 < each < 0.95] == [], "what was in flight ended, nothing else was sent"
        later = {body["messages"][0]["content"].split()[0] for at, _, body in fake.log if at > refused + 0.95}
        assert later == {"one", "two"}, "both had more to ask"
        for worker in workers:
            ray.kill(worker)
        ray.kill(gates)


@pytest.mark.real
def test_a_run_with_two_engines_asks_no_harder_than_it_says(ray_cluster: Any, tmp_path: Path) -> None:
    """Both actors of one stage: `concurrency` is the run's."""
    words = ("parcel", "late", "invoice", "broken", "printer", "refund", "shoes", "wrong", "twice", "cable")

    def write(body: dict[str, Any]) -> str:
        return " my " + " ".join(words[body["seed"] // 10**digit % 10] for digit in range(7))

    lines = [json.dumps({"text": f"question {'x ' * number}", "label": f"l{number % 3}"}) for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = read.Jsonl(path="rows.jsonl", prompt="{text}", answer="{label}")
    with FakeOpenAI(answer=write, slow=0.15) as fake:
        teacher = Endpoint("fake", url=fake.url, concurrency=3)
        stage = generate.TeacherResponses(prompts=rows, teacher=teacher, concurrency=2)
        made = run(stage, str(tmp_path / "store"), base=tmp_path)
        assert made["result"].count == 60
        assert fake.most_at_once == 3
        assert fake.statuses == {200: 60}
