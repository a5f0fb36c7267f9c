import pytest

from graftline.pipelines.ledger import (
    Ledger,
    RoundLedger,
    RowLedger,
    columns_read,
    overlapping,
    prompt_digest,
    read_digests,
    specification,
)
from graftline.pipelines.parts import filled
from graftline.pipelines.store import Store
from graftline.stages import Mapper, Model, Plug, Scorer, Source, Stage
from graftline.stages.lm.engine import Answer, Request, Sampling
from graftline.stages.rows import FIXED
from graftline.stages.value_graph import fingerprints


class Rows(Source):
    n: int = 0


class Teacher(Stage):
    makes = "model"
    size: int = 1


class Style(Plug):
    loud: bool = False


class Score(Scorer):
    model: Model
    style: Style = Style()
    strict: bool = False
    timeout: float = 1.0
    needs = {"answer": "string"}
    adds = {"score": "float64"}
    batch_size: int = 8

    @classmethod
    def is_execution(cls, name):
        return name == "timeout" or super().is_execution(name)


class Change(Mapper):
    needs = {"answer": "string"}


class NoPins:
    def file(self, path):
        raise AssertionError

    def pinned(self, name, find):
        raise AssertionError


def spec(stage, digest="d"):
    known = fingerprints([stage], NoPins())
    return specification(stage, known, {stage.model.key: digest}, NoPins())


def test_the_specification_leaves_out_the_rows():
    score = Score(rows=Rows(n=1), model=Teacher())
    assert spec(score) == spec(Score(rows=Rows(n=2), model=Teacher()))
    assert spec(score) == spec(Score(rows=Rows(), model=Teacher(), timeout=9.0, label="x"))
    for other in (
        Score(rows=Rows(), model=Teacher(size=2)),
        Score(rows=Rows(), model=Teacher(), style=Style(loud=True)),
        Score(rows=Rows(), model=Teacher(), strict=True),
    ):
        assert spec(other) != spec(score)
    assert spec(score, "e") != spec(score), "a model that came out otherwise is another model"


def test_what_is_read_decides():
    score, change = Score(rows=Rows(), model=Teacher()), Change(rows=Rows())
    assert columns_read(score, [*FIXED, "ifd"]) == ["answer", "messages"]
    assert columns_read(change, ["id", "ifd"]) == ["id", "ifd"], "a mapper passes all columns on"
    table = filled([{"id": "a", "answer": "x", "source": "1"}, {"id": "b", "answer": "x", "source": "2"}], FIXED)
    one, other = read_digests(table, ["answer", "messages"])
    assert one == other and len(set(read_digests(table, ["answer", "source"]))) == 2


def test_files_are_found_by_their_range(tmp_path):
    ledger = RowLedger(Store(str(tmp_path)), "ledger/x")
    low, high = ledger.token(["a", "c"]), ledger.token(["m", "ö"])
    names = [f"ledger/x/{low}.parquet", f"ledger/x/{high}.parquet"]
    assert overlapping(names, "b", "b") == names[:1] and overlapping(names, "n", "z") == names[1:]
    assert overlapping(names, "a", "z") == names and overlapping(names, "d", "e") == []


def answer(number):
    return Answer(str(number), f"text {number}", "stop", 10, 5)


@pytest.fixture
def rounds(tmp_path):
    return RoundLedger(Store(str(tmp_path)), "ledger/x")


def test_rounds_keep_answers_by_prompt(rounds):
    token = rounds.token(3)
    rounds.ask(token, 3, "m")
    rounds.write(token, 0, [("p1", answer(1)), ("p2", answer(2))])
    assert {prompt: line["text"] for prompt, line in rounds.read(3).items()} == {"p1": "text 1", "p2": "text 2"}
    assert rounds.read(2) == {}
    assert rounds.calls() == {"model": "m", "requests": 3, "tokens_in": 20, "tokens_out": 10, "why": ""}
    again = rounds.token(3)
    rounds.ask(again, 1, "m")
    rounds.write(again, 0, [("p3", answer(3))])
    rounds.close(again, {"model": "m", "requests": 1, "tokens_in": 10, "tokens_out": 5, "why": "bf16"})
    assert rounds.calls() == {"model": "m", "requests": 4, "tokens_in": 30, "tokens_out": 15, "why": "bf16"}


def test_a_ledger_without_a_request_cost_nothing(tmp_path):
    assert Ledger(Store(str(tmp_path)), "ledger/none").calls() == {}


def test_the_prompt_decides_not_its_id():
    messages = ({"role": "user", "content": "hi"},)
    one = prompt_digest(Request("1", messages))
    assert one == prompt_digest(Request("2", messages))
    assert one == "5ebc97c05450fb07a6572c46f892c03d", "answers that are kept are found again"
    for other in (
        Request("1", messages, Sampling(seed=1)),
        Request("1", messages, Sampling(presence=0.5)),
        Request("1", messages, adapter="a"),
        Request("1", messages, prefix="x"),
        Request("1", (*messages, {"role": "assistant", "content": ""})),
    ):  # fmt: skip
        assert prompt_digest(other) != one
