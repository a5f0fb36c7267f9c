"""Stages that call a model: the ledger, replays, budgets, what is counted."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from safetensors.numpy import save_file

from graftline.pipelines import Budget, run
from graftline.pipelines.failures import ContractBroken
from graftline.pipelines.ledger import RoundLedger
from graftline.pipelines.rounds import TOGETHER, Keep
from graftline.pipelines.store import Store
from graftline.stages import Execution, Made, Mapper, Model, Rounds, Rows, Scorer, Source, Stage
from graftline.stages.errors import BudgetSpent, EngineFailed, PromptTooLong, TooManyFailed
from graftline.stages.lm.engine import Answer, Request, Sampling
from graftline.stages.lm.scripted import ScriptedEngine
from graftline.stages.shapes import RoundsState

ASKED: list[str] = []
"""Every prompt that reached the engine."""
FAULT: list[int] = []
"""How many more requests the engine answers before it fails; empty: all."""


class Fake(Stage):
    """A model directory with one small tensor; its engine is the scripted one."""

    makes = "model"
    model: str = "fake"
    engine: str = "scripted"

    def make(self, context, out):
        (out / "model").mkdir()
        save_file({"weight": np.full(2, len(self.model), np.float32)}, out / "model" / "model.safetensors")
        return {}


class Seeds(Source):
    """A row for each word."""

    words: str

    def make_rows(self, context):
        for word in self.words.split():
            yield Made({"messages": [{"role": "user", "content": word}]})


class Talk(Rounds):
    """Asks about each seed in each round."""

    seeds: Rows
    teacher: Model
    rounds: int = 3
    mode: Annotated[str, Execution] = ""

    def asks(self):
        return self.teacher

    def start(self, context, seeds, teacher):
        state = RoundsState()
        state.seeds = seeds.rows(["id", "messages"]).to_pylist()
        return state

    def propose(self, state, round):
        if round >= self.rounds:
            return []
        requests = []
        for number, seed in enumerate(state.seeds):
            content = "the same" if self.mode == "equal" else f"{seed['messages'][0]['content']}, round {round}"
            name = "one" if self.mode == "ids" else f"{seed['id']}"
            requests.append(Request(name, ({"role": "user", "content": content},), Sampling(seed=round)))
            assert number >= 0
        return requests

    def absorb(self, state, round, answers):
        assert [request.id for request, _ in answers] == sorted(request.id for request, _ in answers)
        for request, answer in answers:
            assert answer.id == request.id
            messages = [*request.messages, {"role": "assistant", "content": answer.text}]
            state.made.append(Made({"parents": [request.id], "messages": messages, "answer": answer.text}))

    def finish(self, state):
        return state.made


class Judge(Scorer):
    """Words of a model's answer to each row."""

    judge: Model
    adds = {"judged": "int64"}
    calls_model = True
    batch_size: Annotated[int, Execution] = 2

    def score_rows(self, table, context):
        with context.engine(self.judge) as engine:
            requests = [
                Request(row, tuple(messages[:1]))
                for row, messages in zip(table["id"].to_pylist(), table["messages"].to_pylist(), strict=True)
            ]
            return {"judged": [len(answer.text.split()) for answer in engine.generate(requests)]}


class Echo(Mapper):
    """Answers each row by the model."""

    teacher: Model
    calls_model = True
    batch_size: Annotated[int, Execution] = 2

    def map_rows(self, table, context):
        import pyarrow as pa

        rows = table.to_pylist()
        with context.engine(self.teacher) as engine:
            for row in rows:
                (answer,) = engine.generate([Request("x", tuple(row["messages"][:1]))])
                row["answer"] = answer.text
        return pa.Table.from_pylist(rows, schema=table.schema)


@pytest.fixture(autouse=True)
def _engine(monkeypatch):
    """Notes what reaches the engine, and has it fail where a test says."""
    ASKED.clear()
    FAULT.clear()
    answer = ScriptedEngine._answer

    def noted(self, request):
        if FAULT:
            FAULT[0] -= 1
            if FAULT[0] < 0:
                raise EngineFailed("the engine died")
        ASKED.append(request.messages[-1]["content"])
        return answer(self, request)

    monkeypatch.setattr(ScriptedEngine, "_answer", noted)


@pytest.fixture
def go(tmp_path):
    def call(pipeline, store="store", **more):
        return run(pipeline, str(tmp_path / store), base=tmp_path, address="here", **more)

    return call


def talk(words="a b c d e", teacher="fake", **more):
    return Talk(seeds=Seeds(words=words), teacher=Fake(model=teacher), **more)


def line(made, name):
    return next(each for each in made.record["stages"] if each["name"] == name)


def test_all_prompts_are_asked_once_and_counted(go):
    made = go(talk())
    assert Counter(ASKED) == Counter(f"{word}, round {number}" for word in "abcde" for number in range(3))
    manifest = made["result"].manifest
    assert made["result"].count == 15 and manifest["rows"]["created"] == 15 and manifest["rows"]["in"] == 5
    assert manifest["calls"]["requests"] == 15 and manifest["calls"]["model"] == "fake"
    assert manifest["calls"]["tokens_out"] > 15 and manifest["reproducible"] is True


@pytest.mark.parametrize("answers", [0, 3, 5, 8, 14])
def test_a_stage_that_died_asks_only_what_is_missing(go, answers):
    whole = go(talk(), "whole")["result"].digest
    ASKED.clear()
    FAULT.append(answers)
    with pytest.raises(EngineFailed, match="engine died"):
        go(talk())
    first = list(ASKED)
    FAULT.clear()
    made = go(talk())
    assert made["result"].digest == whole
    twice = Counter(ASKED) - Counter(set(ASKED))
    assert len(set(ASKED)) == 15 and len(first) == answers and not twice, (
        "answers are kept as they come, failing or not"
    )
    lost = -(-(answers + 1) // 5) * 5 - answers
    assert made["result"].manifest["calls"]["requests"] == 15 + lost, "what was in flight is counted"


@pytest.mark.parametrize("local", [True, False])
def test_an_answer_is_kept_as_it_comes(tmp_path, local):
    """In a remote store, which takes longer to write to, a few go together."""
    filesystem = None if local else SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    ledger = RoundLedger(Store(str(tmp_path) if local else "store", filesystem), "ledger/x")
    requests = [Request(str(number), ({"role": "user", "content": f"{number}"},)) for number in range(20)]
    kept: list[int] = []
    keep = Keep(ledger, ledger.token(0), requests, lambda done: kept.append(len(ledger.read(0))))
    answers = [Answer(request.id, "text", "stop", 1, 1) for request in requests]
    for answer in answers:
        keep(answer)
    each = 1 if local else TOGETHER
    assert kept == [done // each * each for done in range(1, 21)]
    keep.rest(answers)
    assert len(ledger.read(0)) == 20 and len(ledger.store.list("ledger/x/00000")) == -(-20 // each)


def test_the_ledger_stays_for_another_seed(go):
    go(talk("a b c"))
    ASKED.clear()
    made = go(talk("a b c d"))
    assert {text[0] for text in ASKED} == {"d"} and made["result"].count == 12
    ASKED.clear()
    assert go(talk("a b")).ran == 2 and ASKED == []


def test_another_model_is_asked_again(go):
    go(talk("a b"))
    ASKED.clear()
    go(talk("a b", teacher="other"))
    assert len(ASKED) == 6
    go(talk("a b", rounds=2))
    assert len(ASKED) == 10, "another specification has a ledger of its own"


def test_equal_prompts_are_asked_once_a_round(go):
    made = go(talk(mode="equal"))
    assert len(ASKED) == 3 and made["result"].count == 15


def test_requests_need_ids_of_their_own(go):
    with pytest.raises(ContractBroken, match="two requests with one id in round 0") as caught:
        go(talk(mode="ids"))
    assert caught.value.where == "Talk"


def test_the_budget_of_tokens_stops_and_the_run_continues(go):
    whole = go(talk(), "whole")["result"].digest
    ASKED.clear()
    with pytest.raises(BudgetSpent, match="10 tokens is spent") as caught:
        go(talk(), budget=Budget(tokens=10))
    assert caught.value.where == "Talk" and len(ASKED) == 5
    made = go(talk())
    assert made["result"].digest == whole and len(ASKED) == 15
    assert made["result"].manifest["calls"]["requests"] == 15, "nothing was lost"


def test_a_scorer_that_calls_a_model_is_paid_once_a_row(go, tmp_path):
    def pipeline(words):
        return Judge(rows=Seeds(words=words), judge=Fake())

    FAULT.append(3)
    with pytest.raises(EngineFailed):
        go(pipeline("a b c d e"))
    FAULT.clear()
    made = go(pipeline("a b c d e"))
    assert Counter(ASKED).total() == 6, "a batch of two was cut off after one"
    assert made["result"].manifest["calls"]["requests"] >= 5 and line(made, "Judge")["ledger"].startswith(
        "ledger/Judge-"
    )
    ASKED.clear()
    assert go(pipeline("a b c d e f"))["result"].count == 6 and ASKED == ["f"]
    names = [path.name for path in tmp_path.glob("store/ledger/Judge-*/*.parquet")]
    assert len(names) == 4


def test_a_budget_stops_a_scorer_between_batches(go):
    with pytest.raises(BudgetSpent):
        go(Judge(rows=Seeds(words="a b c d e f"), judge=Fake()), budget=Budget(tokens=1))
    assert len(ASKED) == 2
    made = go(Judge(rows=Seeds(words="a b c d e f"), judge=Fake()))
    assert len(ASKED) == 6 and made["result"].manifest["calls"]["requests"] == 6


def test_a_mapper_that_calls_a_model(go):
    made = go(Echo(rows=Seeds(words="a b c"), teacher=Fake()))
    assert all(made["result"].rows(["answer"])["answer"].to_pylist()) and len(ASKED) == 3


def test_rows_are_written_after_a_stage_that_calls_a_model(go, tmp_path):
    judged = Judge(rows=Seeds(words="a b"), judge=Fake())
    go(Judged(rows=judged))
    assert list(tmp_path.glob("store/artefacts/Judge-*/*/artefact.json"))


class Judged(Scorer):
    """Reads what `Judge` said."""

    needs = {"judged": "int64"}
    adds = {"twice": "int64"}

    def score_rows(self, table, context):
        return {"twice": [2 * value for value in table["judged"].to_pylist()]}


def test_an_engines_failure_is_no_rows_fault(go):
    FAULT.append(0)
    with pytest.raises(EngineFailed):
        go(Judge(rows=Seeds(words="a b"), judge=Fake()))


def test_a_prompt_that_is_a_rows_own_fault(go, monkeypatch):
    answer = ScriptedEngine._answer

    def long(self, request):
        if request.messages[-1]["content"] == "c":
            raise PromptTooLong("has 9000 tokens")
        return answer(self, request)

    monkeypatch.setattr(ScriptedEngine, "_answer", long)
    made = go(Judge(rows=Seeds(words="a b c d"), judge=Fake(), max_failed=0.3))
    assert made["result"].manifest["rows"]["failed"] == {"has 9000 tokens": 1}
    with pytest.raises(TooManyFailed):
        go(Judge(rows=Seeds(words="a b c d"), judge=Fake(), max_failed=0.2), "other")


def test_a_prompt_that_cannot_be_asked_spoils_no_other(go, monkeypatch, tmp_path):
    answer = ScriptedEngine._answer

    def long(self, request):
        if request.messages[-1]["content"].startswith("c"):
            raise PromptTooLong("has 9000 tokens")
        return answer(self, request)

    monkeypatch.setattr(ScriptedEngine, "_answer", long)
    made = go(talk("a b c d e", rounds=2))
    answers = {row["messages"][0]["content"]: row["answer"] for row in made["result"].rows().to_pylist()}
    assert len(answers) == 10 and {text for text, said in answers.items() if not said} == {"c, round 0", "c, round 1"}
    (fault,) = {
        line["fault"]
        for path in Path(tmp_path, "store").rglob("*.answers.json")
        for line in json.loads(path.read_text())["answers"]
        if not line["text"]
    }
    assert fault == "has 9000 tokens", "the reason is remembered, too"
    ASKED.clear()
    assert go(talk("a b c d e", rounds=2, label="again")).ran == 0 and ASKED == []


def test_no_file_of_the_store_is_a_pickle(go, tmp_path):
    go(Judge(rows=talk("a b"), judge=Fake()))
    kinds = {path.suffix for path in Path(tmp_path, "store").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".parquet", ".safetensors", ".lock", ".html"}
    for path in Path(tmp_path).glob("store/ledger/**/*.json"):
        assert isinstance(json.loads(path.read_text()), dict)
