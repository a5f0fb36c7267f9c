from contextlib import contextmanager
from typing import Annotated

import pyarrow as pa
import pytest

from graftline.pipelines.context import Calls
from graftline.pipelines.failures import ContractBroken
from graftline.pipelines.ledger import RowLedger
from graftline.pipelines.parts import filled
from graftline.pipelines.steps import Step
from graftline.pipelines.store import Store
from graftline.stages import Execution, Mapper, Scorer, Source
from graftline.stages.errors import BudgetSpent, RowFault, WorldError
from graftline.stages.rows import FIXED


class Empty(Source):
    """An input."""


class Length(Scorer):
    """Letters of the first message; `mode` says how it misbehaves."""

    adds = {"length": "int64"}
    mode: Annotated[str, Execution] = ""

    def score_rows(self, table, context):
        texts = [messages[0]["content"] for messages in table["messages"].to_pylist()]
        if self.mode in texts:
            raise RowFault(f"cannot measure {self.mode}")
        values = [len(text) for text in texts]
        wrong = {
            "short": {"length": values[1:]},
            "text": {"length": texts},
            "other": {"size": values},
            "more": {"length": values, "size": values},
            "list": values,
            "missing": {"length": [None if value > 1 else value for value in values]},
        }
        if self.mode == "world":
            raise WorldError("the server is down")
        return wrong.get(self.mode, {"length": values})


class Upper(Mapper):
    """Capitals; `mode` says how it misbehaves."""

    mode: Annotated[str, Execution] = ""

    def map_rows(self, table, context):
        rows = table.to_pylist()
        for row in rows:
            if row["messages"][0]["content"] == "c" and self.mode == "fail":
                raise KeyError("c")
            row["messages"][0]["content"] = row["messages"][0]["content"].upper()
        if self.mode == "leave":
            rows = [row for row in rows if row["id"] != "1"]
        if self.mode == "filter":
            for row in rows:
                row["filtered"] = "vowel" if row["messages"][0]["content"] in "AE" else None
            return pa.Table.from_pylist(rows, schema=table.schema.append(pa.field("filtered", pa.string())))
        if self.mode == "unknown":
            rows[0]["id"] = "nobody"
        if self.mode == "twice":
            rows[1]["id"] = rows[0]["id"]
        if self.mode == "number":
            return pa.table(
                {**{name: table[name] for name in table.column_names}, "answer": pa.array([[1]] * len(rows))}
            )
        made = pa.Table.from_pylist(rows, schema=table.schema)
        return made.drop_columns("answer") if self.mode == "column" else made.take(list(range(len(rows)))[::-1])


class Paid(Scorer):
    """A scorer that calls a model; counts whom it was called for."""

    adds = {"score": "float64"}
    calls_model = True

    def score_rows(self, table, context):
        context.seen += table["id"].to_pylist()
        if any(messages[0]["content"] == context.bad for messages in table["messages"].to_pylist()):
            raise context.error("unparsable")
        context.calls.requests += table.num_rows
        return {"score": [0.5] * table.num_rows}


class FakeContext:
    """What a step needs of its context."""

    def __init__(self):
        self.calls, self.seen, self.bad = Calls(model="m"), [], None
        self.spent, self.error = False, ValueError

    @contextmanager
    def paying_later(self):
        def pay():
            if self.spent:
                raise BudgetSpent("spent")

        yield pay


def table(texts="abcdefg"):
    return filled(
        [{"id": str(number), "messages": [{"role": "user", "content": text}]} for number, text in enumerate(texts)],
        FIXED,
    )


def run(stage, texts="abcdefg"):
    kept, dropped = Step(stage, FakeContext()).run(table(texts))
    assert kept.num_rows + sum(map(len, dropped.rows.values())) == len(texts)
    return kept, dropped


def test_a_scorer_adds_its_columns():
    kept, dropped = run(Length(rows=Empty(), batch_size=3))
    assert kept.column_names == [*FIXED, "length"] and kept["length"].to_pylist() == [1] * 7
    assert kept["id"].to_pylist() == list("0123456") and dropped.reasons == {"filtered": {}, "failed": {}}


def test_the_guilty_row_fails_alone():
    kept, dropped = run(Length(rows=Empty(), mode="d"))
    assert kept["id"].to_pylist() == list("012456")
    assert dropped.reasons["failed"] == {"cannot measure d": 1}
    assert [row["id"] for row in dropped.rows["failed"]] == ["3"]
    kept, dropped = run(Upper(rows=Empty(), mode="fail", batch_size=2))
    assert kept["id"].to_pylist() == list("013456") and dropped.reasons["failed"] == {"KeyError: 'c'": 1}


def test_missing_is_null():
    assert run(Length(rows=Empty(), mode="missing"), ["a", "bb"])[0]["length"].to_pylist() == [1, None]


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("short", "returned 6 values of 'length' for 7 rows"),
        ("text", "values of 'length' that are no int64"),
        ("other", r"returned \['size'\], not \['length'\]"),
        ("more", r"returned \['length', 'size'\], not \['length'\]"),
        ("list", "returned list"),
    ],
)
def test_a_scorer_that_breaks_its_contract(mode, says):
    with pytest.raises(ContractBroken, match=says) as caught:
        run(Length(rows=Empty(), mode=mode, label="Mine"))
    assert caught.value.where == "Mine" and caught.value.do


def test_a_mapper_changes_rows_and_may_return_them_in_any_order():
    kept, _ = run(Upper(rows=Empty(), batch_size=4))
    assert [messages[0]["content"] for messages in kept["messages"].to_pylist()] == list("ABCDEFG")


def test_a_mapper_filters():
    kept, dropped = run(Upper(rows=Empty(), mode="filter"))
    assert kept["id"].to_pylist() == list("12356") and dropped.reasons["filtered"] == {"vowel": 2}
    assert [row["messages"][0]["content"] for row in dropped.rows["filtered"]] == ["A", "E"]
    kept, dropped = run(Upper(rows=Empty(), mode="leave"))
    assert kept["id"].to_pylist() == list("023456") and dropped.reasons["filtered"] == {"left out": 1}


@pytest.mark.parametrize(
    ("mode", "says"), [("unknown", "the id 'nobody'"), ("twice", "the id '0'"), ("column", "no column 'answer'")]
)
def test_a_mapper_that_breaks_its_contract(mode, says):
    with pytest.raises(ContractBroken, match=says) as caught:
        run(Upper(rows=Empty(), mode=mode))
    assert caught.value.where == "Upper"


def test_values_that_a_column_cannot_hold_fail():
    kept, dropped = run(Upper(rows=Empty(), mode="number"))
    assert kept.num_rows == 0 and dropped.reasons["failed"].total() == 7


def test_the_world_is_no_rows_fault():
    with pytest.raises(WorldError, match="server is down"):
        run(Length(rows=Empty(), mode="world"))


# --- the ledger -------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path):
    return RowLedger(Store(str(tmp_path)), "ledger/Paid-1")


def paid(ledger, texts, context=None, size=2):
    context = context or FakeContext()
    step = Step(Paid(rows=Empty(), batch_size=size), context, ledger)
    kept, dropped = step.run(table(texts), ledger.files())
    return kept, dropped, context


def test_no_row_is_paid_for_twice(ledger):
    first, _, context = paid(ledger, "abcde")
    assert context.seen == list("01234") and ledger.calls()["requests"] == 5
    again, _, context = paid(ledger, "abcde")
    assert context.seen == [] and again == first and ledger.calls()["requests"] == 5


def test_added_and_changed_rows_are_asked_alone(ledger):
    paid(ledger, "abcde")
    kept, _, context = paid(ledger, "abcXefg")
    assert context.seen == ["3", "5", "6"], "a changed content is another question"
    assert kept["id"].to_pylist() == list("0123456") and kept["score"].to_pylist() == [0.5] * 7


def test_what_was_made_before_the_world_failed_is_kept(ledger):
    context = FakeContext()
    step = Step(Paid(rows=Empty(), batch_size=2), context, ledger)
    original, calls = Paid.score_rows, []

    class Down:
        calls_left = 2

    def fails(self, batch, given):
        calls.append(batch.num_rows)
        if len(calls) > Down.calls_left:
            raise WorldError("the server is down")
        return original(self, batch, given)

    step._called = lambda batch: step._scored(batch, fails(step.stage, batch, context))
    with pytest.raises(WorldError):
        step.run(table("abcdefg"))
    kept, _, context = paid(ledger, "abcdefg")
    assert context.seen == list("456") and kept.num_rows == 7
    assert ledger.calls()["requests"] == 4 + 2 + 3, "the two that were in flight are counted"


@pytest.mark.parametrize("error", [RowFault, ValueError])
def test_a_failed_row_is_remembered_where_it_is_its_own_fault(ledger, error):
    context = FakeContext()
    context.bad, context.error = "c", error
    _, dropped, _ = paid(ledger, "abcd", context)
    assert sum(dropped.reasons["failed"].values()) == 1
    _, dropped, context = paid(ledger, "abcd")
    if error is RowFault:
        assert context.seen == [] and dropped.reasons["failed"] == {"unparsable": 1}
    else:
        assert context.seen == ["2"] and dropped.reasons["failed"] == {}


def test_a_spent_budget_stops_after_the_batch_is_kept(ledger):
    context = FakeContext()
    context.spent = True
    with pytest.raises(BudgetSpent):
        paid(ledger, "abcdef", context)
    assert context.seen == ["0", "1"]
    _, _, context = paid(ledger, "abcdef")
    assert context.seen == list("2345")
