"""`kill -9` of the driver, and again: the same artefacts as without, and nothing committed is asked for twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..fake_openai import FakeOpenAI

# Slow enough (the pauses are execution fields) that a kill hits every stage.
PIPELINE = """
import sys, time
from typing import Annotated
from graftline.stages import Endpoint, Execution, Made, Model, Rounds, Rows, Scorer, Source, select
from graftline.stages.shapes import RoundsState


class Words(Source):
    count: int = 24

    def make_rows(self, context):
        for number in range(self.count):
            time.sleep(0.02)
            yield Made({"messages": [{"role": "user", "content": f"word {number}"}]})


class Talk(Rounds):
    seeds: Rows
    teacher: Model
    rounds: int = 3
    pause: Annotated[float, Execution] = 0.2

    def asks(self):
        return self.teacher

    def start(self, context, seeds, teacher):
        state = RoundsState()
        state.seeds = [(row["id"], row["messages"][0]["content"]) for row in seeds.rows().to_pylist()]
        state.heard = ""
        return state

    def propose(self, state, round):
        from graftline.stages.lm.engine import Request, Sampling

        time.sleep(self.pause)
        return [
            Request(
                f"{number:03d}",
                ({"role": "user", "content": f"{text}, round {round}, after {state.heard[-40:]}"},),
                Sampling(seed=round),
            )
            for number, (_, text) in enumerate(state.seeds if round < self.rounds else [])
        ]

    def absorb(self, state, round, answers):
        for request, answer in answers:
            state.heard += answer.text
            row = {"parents": [state.seeds[int(request.id)][0]], "answer": answer.text}
            row["messages"] = [*request.messages, {"role": "assistant", "content": answer.text}]
            state.made.append(Made(row, *(("filtered", "short") if len(answer.text) < 30 else ())))

    def finish(self, state):
        return state.made


class Length(Scorer):
    adds = {"length": "int64"}
    batch_size: Annotated[int, Execution] = 8

    def score_rows(self, table, context):
        time.sleep(0.2)
        return {"length": [len(text) for text in table["answer"].to_pylist()]}


def pipeline(url):
    talk = Talk(seeds=Words(), teacher=Endpoint("fake", url=url, concurrency=4))
    return select.TopK(rows=Length(rows=talk), by="length", k=10)


if __name__ == "__main__":
    from graftline.pipelines import run

    run(pipeline(sys.argv[2]), store=sys.argv[1], watch=lambda event: print(event.kind, event.name, flush=True))
"""

ASKED = 3 * 24
IN_FLIGHT = 4
"""Requests at the server at once, which is what a kill may lose."""


def start(file: Path, store: Path, url: str) -> subprocess.Popen[str]:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        [sys.executable, str(file), str(store), url], env=environment, cwd=file.parent, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(file: Path, store: Path, url: str) -> tuple[dict[str, Any], float]:
    """Runs to the end; the run's record, and the seconds between the first stage's start and the end."""
    process, begun = start(file, store, url), 0.0
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        begun = begun or (time.monotonic() if line.startswith("started") else 0.0)
    assert process.wait() == 0, "".join(lines)
    latest = json.loads((store / "runs/latest.json").read_text())["id"]
    return json.loads((store / "runs" / latest / "run.json").read_text()), time.monotonic() - begun


def kill(file: Path, store: Path, url: str, now: Callable[[float], bool], how: signal.Signals) -> bool:
    """Ends a driver when it is time, given the seconds since its first stage started; whether it was still at work."""
    process = start(file, store, url)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("started"):
            break
    begun = time.monotonic()
    while process.poll() is None:
        if now(time.monotonic() - begun):
            os.kill(process.pid, how)
            process.wait(30)
            return True
        time.sleep(0.01)
    return False


def digests(record: dict[str, Any]) -> dict[str, str]:
    return {line["name"]: line["digest"] for line in record["stages"]}


def sent(server: FakeOpenAI) -> Counter[str]:
    """How often the server was asked each prompt."""
    return Counter(json.dumps(body["messages"]) for _, _, body in server.log)


def kept(store: Path) -> int:
    """How many prompts are answered in the ledger's files."""
    files = store.glob("ledger/Talk-*/*/*.answers.json")
    return len({(path.parent, line["prompt"]) for path in files for line in json.loads(path.read_text())["answers"]})


def check(tmp_path: Path, kills: int, interrupts: int = 0) -> None:
    file = tmp_path / "talking.py"
    file.write_text(PIPELINE)
    with FakeOpenAI(slow=0.1) as server:
        whole, seconds = finish(file, tmp_path / "whole", server.url)
        assert whole["state"] == "done" and len(digests(whole)) == 5
        assert len(sent(server)) == sent(server).total() == ASKED

        server.log.clear()
        moments, store = random.Random(kills), tmp_path / "killed"
        hit = amid = 0
        for number in range(kills):
            # Later and later, so that all stages are hit although each run begins where the last one ended.
            after = moments.uniform(0, seconds * (number + 1) / kills / 2)
            before = len(server.log)
            moment: Callable[[float], bool] = lambda passed, after=after: passed > after  # noqa: E731
            if number == kills // 2:  # this one amid a round
                moment = lambda passed, before=before: len(server.log) >= before + 10  # noqa: E731
            hit += kill(file, store, server.url, moment, signal.SIGINT if number < interrupts else signal.SIGKILL)
            known = len(sent(server))  # at once: Ray may let a worker finish its round
            assert known - kept(store) <= IN_FLIGHT, "an answer that came is not kept"
            time.sleep(0.5)  # until what was in flight is in the server's log
            amid += len(server.log) > before
        again, _ = finish(file, store, server.url)
    assert hit >= kills // 2, f"only {hit} of {kills} kills met a run at work: make the pipeline slower"
    assert digests(again) == digests(whole)

    counts = sent(server)
    assert len(counts) == ASKED
    lost = counts.total() - ASKED
    assert lost <= amid * IN_FLIGHT, f"{amid} kills lost {lost} requests: only what was in flight may be asked again"
    talk = next(line for line in again["stages"] if line["name"] == "Talk")
    assert talk["calls"]["requests"] >= counts.total(), "what was paid twice is counted twice"
    states = [json.loads(path.read_text())["state"] for path in store.glob("runs/*/run.json")]
    assert states.count("done") == kills - hit + 1 and states.count("interrupted") <= interrupts


@pytest.mark.real
def test_a_killed_driver_continues(tmp_path):
    check(tmp_path, kills=3, interrupts=1)


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path):
    check(tmp_path, kills=10)
