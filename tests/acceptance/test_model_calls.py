"""Model calls, counted at the server, across kills: what is asked again is at most the batch that was in flight."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..fake_openai import FakeOpenAI

PIPELINE = """
from graftline.stages import Endpoint, generate, read, score, select


def pipeline(url: str):
    rows = read.Jsonl(path="rows.jsonl", prompt="{text}", answer="{label}")
    answers = generate.TeacherResponses(prompts=rows, teacher=Endpoint("teacher", url=url, concurrency=4))
    judge = Endpoint("judge", url=url, concurrency=2)
    judged = score.LlmJudge(rows=answers, judge=judge, dimensions={"truth": "is it true?"}, batch_size=4)
    return select.TopK(rows=judged, by="judge", k=10)
"""
ROWS = 60
IN_FLIGHT = {"teacher": 4, "judge": 4}
"""Requests that a kill may lose: of the teacher those that are asked at once, of the judge a batch of rows."""


class Counting(FakeOpenAI):
    """A server that says when it has been asked so many times more."""

    def __init__(self) -> None:
        super().__init__(models=("teacher", "judge"), slow=0.02, answer=self.answered)
        self.asked, self.reached, self.at = 0, threading.Event(), 0
        self.hit = Counter[str]()

    def stop_at(self, more: int) -> None:
        self.at = self.asked + more
        self.reached.clear()

    def answered(self, body: dict[str, Any]) -> str:
        self.asked += 1
        if self.asked == self.at:
            self.hit[body["model"]] += 1
            self.reached.set()
        words = sum(len(turn["content"]) for turn in body["messages"])
        return f'{{"truth": {words % 10 + 1}}}' if body["model"] == "judge" else f"an answer of {words} letters"

    def sent(self, model: str) -> Counter[str]:
        """How often each prompt was sent to a model."""
        return Counter(json.dumps(body["messages"]) for _, _, body in self.log if body["model"] == model)


def lines(store: Path) -> dict[str, Any]:
    """Stage name → its line in the latest run's record."""
    latest = json.loads((store / "runs/latest.json").read_text())["id"]
    run = json.loads((store / "runs" / latest / "run.json").read_text())
    assert run["state"] == "done"
    return {line["name"]: line for line in run["stages"]}


def check(
    graftline: Callable[..., Any], start: Callable[..., subprocess.Popen[str]], file: Path, kills: int, *where: str
) -> None:
    apart = 2 * ROWS // (kills + 1)
    assert apart > 5 * max(IN_FLIGHT.values()), "a kill must have more to lose than it may"
    rows = [json.dumps({"text": f"question {'x ' * n}", "label": "l"}) for n in range(ROWS)]
    (file.parent / "rows.jsonl").write_text("\n".join(rows))
    killed, whole = file.parent / "killed", file.parent / "whole"
    with Counting() as server:
        given = ("run", str(file), "--set", f"url={server.url}", *where)
        for _ in range(kills):
            server.stop_at(apart)
            process = start(*given, "--store", str(killed))
            while not server.reached.wait(0.2):
                assert process.poll() is None, process.stdout and process.stdout.read()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        done = graftline(*given, "--store", str(killed))
        assert done.code == 0, done.err
        found, asked = lines(killed), {model: server.sent(model) for model in IN_FLIGHT}
        done = graftline(*given, "--store", str(whole))
        assert done.code == 0, done.err
    for model, stage in (("teacher", "TeacherResponses"), ("judge", "LlmJudge")):
        attempts, line = asked[model].total(), found[stage]
        assert line["rows"]["kept"] == len(asked[model]) == ROWS and not line["rows"]["failed"]
        said = f"{attempts} attempts at {ROWS} rows of {stage}, {server.hit[model]} kills"
        assert server.hit[model] and attempts - ROWS <= server.hit[model] * IN_FLIGHT[model], said
        print(said)  # where pytest is run with -s
        assert line["calls"]["requests"] >= attempts, "what was paid twice is counted twice"
    assert {name: line["digest"] for name, line in found.items()} == {
        name: line["digest"] for name, line in lines(whole).items()
    }


@pytest.mark.real
def test_a_kill_costs_at_most_what_was_in_flight(
    graftline: Callable[..., Any], start: Callable[..., Any], pipeline_file: Callable[[str], Path]
) -> None:
    check(graftline, start, pipeline_file(PIPELINE), 4, "--address", "here")


@pytest.mark.slow
def test_nor_on_ray(
    graftline: Callable[..., Any], start: Callable[..., Any], pipeline_file: Callable[[str], Path]
) -> None:
    check(graftline, start, pipeline_file(PIPELINE), 4)
