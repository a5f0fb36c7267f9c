"""Whole runs against a server that fails: the stage stops and goes on, no row fails for it, nothing is paid twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftline.pipelines import Budget, run
from graftline.stages import Endpoint, generate, read, score
from graftline.stages.errors import BudgetSpent, EndpointRefused, EngineFailed

from ..fake_openai import FakeOpenAI

ROWS, BATCH = 24, 4


def judged(body: dict[str, Any]) -> str:
    words = sum(len(turn["content"].split()) for turn in body["messages"])
    return json.dumps({"truth": words % 10 + 1})


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., Any]:
    """Runs a pipeline in this process."""

    def call(pipeline: Any, **more: Any) -> Any:
        return run(pipeline, str(tmp_path / "store"), base=tmp_path, address="here", **more)

    return call


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    lines = [json.dumps({"text": f"question {'x ' * number}", "label": f"l{number % 3}"}) for number in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return read.Jsonl(path="rows.jsonl", prompt="{text}", answer="{label}")


def judge(rows: Any, url: str, **fields: Any) -> score.LlmJudge:
    endpoint = Endpoint("fake", url=url, **{"concurrency": 2, "patience": 0.4, **fields})
    return score.LlmJudge(rows=rows, judge=endpoint, dimensions={"truth": "is it?"}, batch_size=BATCH)


def asked(fake: FakeOpenAI, status: int = 200) -> list[str]:
    return [json.dumps(body["messages"]) for _, found, body in fake.log if found == status]


def test_an_outage_stops_the_stage_and_it_goes_on(go: Any, rows: Any) -> None:
    with FakeOpenAI() as fake:

        def answer(body: dict[str, Any]) -> str:
            fake.outage = len(asked(fake)) == 2 * BATCH + 1
            return judged(body)

        fake.answer = answer
        with pytest.raises(EngineFailed, match="the server is down"):
            go(judge(rows, fake.url))
        before = asked(fake)
        assert 2 * BATCH < len(before) < ROWS
        fake.outage, fake.answer = False, judged
        made = go(judge(rows, fake.url))
        table = made["result"].rows()
        line = next(each for each in made.record["stages"] if each["name"] == "LlmJudge")
        assert line["rows"]["failed"] == {} and line["rows"]["kept"] == table.num_rows == ROWS
        assert None not in table["judge"].to_pylist()
        every = asked(fake)
        assert len(set(every)) == ROWS
        assert len(every) - ROWS <= BATCH, "at most the batch in flight is paid for twice"
        assert line["calls"]["requests"] >= ROWS and line["calls"]["tokens_out"] > 0


def test_a_wrong_key_starts_nothing_and_later_fails_no_row(
    go: Any, rows: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_KEY", "wrong")
    with FakeOpenAI(key="right", answer=judged) as fake:
        with pytest.raises(EndpointRefused, match="refuses the key"):
            go(judge(rows, fake.url, key_env="FAKE_KEY"))
        assert fake.log == [] and not list(tmp_path.glob("store/artefacts/*"))
        monkeypatch.setenv("FAKE_KEY", "right")
        go(Endpoint("fake", url=fake.url, key_env="FAKE_KEY"))
        # The model's artefact is there now, so that planning does not look at the server again.
        monkeypatch.setenv("FAKE_KEY", "wrong")
        with pytest.raises(EndpointRefused, match="refuses the key"):
            go(judge(rows, fake.url, key_env="FAKE_KEY"))
        monkeypatch.setenv("FAKE_KEY", "right")
        made = go(judge(rows, fake.url, key_env="FAKE_KEY"))
    assert made["result"].count == ROWS
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"Bearer" in each for each in written)


def test_money_is_counted_and_its_budget_kept(go: Any, rows: Any) -> None:
    with FakeOpenAI(answer=judged) as fake:
        stage = judge(rows, fake.url, price_in=1e4, price_out=1e4)  # a hundredth a token
        with pytest.raises(BudgetSpent):
            go(stage, budget=Budget(money=5.0))
        assert 0 < len(asked(fake)) < ROWS
        made = go(stage)
        assert len(asked(fake)) == ROWS
    (line,) = (each for each in made.record["stages"] if each["name"] == "LlmJudge")
    assert line["calls"]["money"] > 5 and line["rows"]["kept"] == ROWS


def test_it_teaches(go: Any, rows: Any) -> None:
    def write(body: dict[str, Any]) -> str:
        words = ("parcel", "late", "invoice", "broken", "printer", "refund", "shoes", "wrong", "twice", "cable")
        number = body["seed"]
        return f" my {' '.join(words[number // 10**digit % 10] for digit in range(7))}\n9. more"

    with FakeOpenAI(answer=write, p500=0.1) as fake:
        teacher = Endpoint("fake", url=fake.url, concurrency=4)
        made = go(generate.SelfInstruct(seeds=rows, teacher=teacher, count=6))
        assert "Go on from here" in asked(fake)[0]
    table = made["result"].rows()
    assert table.num_rows == 6 and {row["model"] for row in table["gen"].to_pylist()} == {"fake"}
