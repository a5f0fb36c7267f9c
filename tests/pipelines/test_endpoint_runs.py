"""Whole runs against a server that fails: the stage stops and goes on, no row fails for it, nothing is paid twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftline.pipelines import Budget, run
from graftline.stages import Endpoint, generate, read, score, select
from graftline.stages.errors import BudgetSpent, EndpointRefused, EngineFailed, RunError

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


def made_of(stage: str, tmp_path: Path) -> list[Path]:
    """A stage's committed artefacts."""
    return list(tmp_path.glob(f"store/artefacts/{stage}-*/*/artefact.json"))


def test_an_outage_stops_the_stage_and_it_goes_on(go: Any, rows: Any, tmp_path: Path) -> None:
    with FakeOpenAI() as fake:

        def answer(body: dict[str, Any]) -> str:
            fake.outage = len(asked(fake)) == 2 * BATCH + 1
            return judged(body)

        fake.answer = answer
        with pytest.raises(EngineFailed, match="the server is down"):
            go(judge(rows, fake.url))
        before = asked(fake)
        assert 2 * BATCH < len(before) < ROWS
        assert made_of("LlmJudge", tmp_path) == [], "nothing is committed"
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


def test_an_outage_turns_no_row_into_a_failed_one_and_nothing_is_made_of_the_rest(go: Any, tmp_path: Path) -> None:
    """Longer than the server's patience, in the middle of a generation: the selection after it never runs, and the
    next run asks for what is not answered, and for nothing else."""
    many, patience = 80, 0.3
    lines = [json.dumps({"text": f"question {number}", "label": f"l{number % 3}"}) for number in range(many)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def pipeline(url: str) -> Any:
        teacher = Endpoint("fake", url=url, concurrency=4, patience=patience)
        rows = read.Jsonl(path="many.jsonl", prompt="{text}", answer="{label}")
        return select.Split(rows=generate.TeacherResponses(prompts=rows, teacher=teacher)).train

    def answer(body: dict[str, Any]) -> str:
        fake.outage = len(asked(fake)) >= 30
        return body["messages"][-1]["content"] * 3

    with FakeOpenAI(answer=answer) as fake:
        with pytest.raises(EngineFailed, match=r"no answer for .*503: the server is down.*what was answered is kept"):
            go(pipeline(fake.url))
        before = set(asked(fake))
        assert 30 <= len(before) <= 34 and fake.statuses[503] < 20, "it is left alone, and given up in the end"
        assert made_of("TeacherResponses", tmp_path) == made_of("Split", tmp_path) == []
        fake.outage, fake.answer, fake.log = False, lambda body: body["messages"][-1]["content"] * 3, []
        made = go(pipeline(fake.url))
        after = asked(fake)
    assert len(after) == len(set(after)) == many - len(before) and not before & set(after), "none is asked twice"
    line = next(each for each in made.record["stages"] if each["name"] == "TeacherResponses")
    assert line["rows"]["kept"] == many and line["rows"]["failed"] == {}


def test_a_judge_that_answers_nonsense_scores_nothing_and_nothing_is_chosen_by_it(go: Any, rows: Any) -> None:
    def sometimes(body: dict[str, Any]) -> str:
        words = body["messages"][1]["content"].count(" x")
        return "as an oracle, I smell 9 lilies" if words % 2 else judged(body)

    with FakeOpenAI(answer=lambda body: "excellent!! 11/10") as fake:
        stage = judge(rows, fake.url).replace("retries", 1)
        with pytest.raises(RunError, match=rf"none of {ROWS} rows has a value in 'judge'"):
            go(select.TopK(rows=stage, by="judge", k=3))
        assert fake.statuses[200] == ROWS * 2, "each is asked again, so often and no more"
        table = go(stage)["result"].rows()
        assert fake.statuses[200] == ROWS * 2 and table.num_rows == ROWS
        assert set(table["judge"].to_pylist()) == set(table["judge_truth"].to_pylist()) == {None}
        assert all(table["judge_why"].to_pylist())
    with FakeOpenAI(answer=sometimes) as fake:
        stage = judge(rows, fake.url).replace("retries", 0)
        best = go(select.TopK(rows=stage, by="judge", k=ROWS // 2))["result"].rows()
        assert best.num_rows == ROWS // 2 and None not in best["judge"].to_pylist()


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
