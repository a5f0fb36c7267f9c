from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graftline.pipelines import plan, run
from graftline.stages import (
    Adapter,
    Llm,
    Made,
    Mapper,
    Model,
    Rounds,
    Rows,
    Scorer,
    Selector,
    Source,
    Stage,
    Verdict,
    View,
    select,
)


class Lines(Source):
    path: str = "lines.jsonl"

    def pins(self, resolve):
        return {"path": resolve.file(self.path)}

    def make_rows(self, context):
        yield from (Made({"answer": line}) for line in Path(context.file(self.path)).read_text().split())


class Length(Scorer):
    adds = {"length": "int64"}

    def score_rows(self, table, context):
        return {"length": [len(answer) for answer in table["answer"].to_pylist()]}


class Judge(Scorer):
    adds = {"judged": "float64"}
    calls_model = True
    judge: Model


class Same(Mapper):
    """Changes nothing."""

    def map_rows(self, table, context):
        return table


class Split(Selector):
    views = ("train", "test")
    shares: tuple[float, float] = (0.25, 0.75)

    @property
    def train(self):
        return View(of=self, part="train")

    def select_rows(self, table, context):
        return [
            Verdict(row, part="train" if number % 4 == 0 else "test")
            for number, row in enumerate(table["id"].to_pylist())
        ]


class Talk(Rounds):
    seeds: Rows
    teacher: Model
    count: int = 50

    def asks(self):
        return self.teacher

    def most_calls(self):
        return (80, 30)


class Tuned(Stage):
    makes = "adapter"
    model: Model
    rows: Rows


class Report(Stage):
    makes = "report"
    adapter: Adapter
    rows: Rows

    def expand(self):
        return {"tokens": Same(rows=self.rows)}

    def calls_expected(self, rows):
        return (2 * rows["rows"], 100, 200)


class Known(Mapper):
    """Says itself how many rows it leaves."""

    def rows_expected(self, rows):
        return rows["rows"] // 3


class Halves(Split):
    """Says itself how many rows its parts have."""

    def rows_expected(self, rows):
        return {"train": 1, "test": rows["rows"] - 1}


@pytest.fixture
def look(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTLINE_STORE", str(tmp_path / "store"))
    (tmp_path / "lines.jsonl").write_text("one\ntwo\nthree\nfour\n" * 2)
    return lambda pipeline: {step.name: step for step in plan(pipeline, base=tmp_path).steps}


def test_estimates(look):
    split = Split(rows=Length(rows=Lines()))
    talk = Talk(seeds=split.train, teacher=Llm("tiny"), count=50)
    judged = Judge(rows=select.TopK(rows=Same(rows=split.train), by="length", k=100), judge=Llm("tiny"))
    both = select.Concat(rows=(talk, split.train))
    report = Report(adapter=Tuned(model=Llm("tiny"), rows=both), rows=split.train)
    found = look({"report": report, "judged": judged})
    rows = {name: step.rows for name, step in found.items() if step.kind == "rows"}
    assert rows["Lines"] == rows["Length"] == rows["Split"] == 8 and rows["Split.train"] == 2
    assert rows["Talk"] == 50 and rows["TopK"] == 2 and rows["Concat"] == 52
    assert (found["Talk"].calls, found["Talk"].tokens_out) == (80, 2400)
    assert (found["Judge"].calls, found["Judge"].tokens_in) == (2, None)
    assert (found["Report"].calls, found["Report"].tokens_in, found["Report"].tokens_out) == (4, 100, 200)
    assert (found["Lines"].calls, found["Tuned"].calls) == (0, 0)


def test_a_stage_may_say_it_itself(look):
    assert look(Known(rows=Lines()))["Known"].rows == 2
    assert look(Halves(rows=Lines()).train)["Halves.train"].rows == 1


def test_the_estimate_is_what_then_happens(look, tmp_path):
    split = Split(rows=Length(rows=Lines()))
    pipeline = select.TopK(rows=Same(rows=split.train), by="length", k=1)
    before = {name: step.rows for name, step in look(pipeline).items()}
    run(pipeline, base=tmp_path, address="here")
    counted = {name: step.rows for name, step in look(pipeline).items()}
    assert {name: rows for name, rows in counted.items() if name != "Same"} == {
        name: rows for name, rows in before.items() if name != "Same"
    }


@pytest.mark.parametrize(
    ("name", "rows"), [("a.jsonl", 3), ("a.csv", 2), ("a.tsv", 2), ("a.parquet", 4), ("a.txt", None)]
)
def test_rows_of_a_file(look, tmp_path, name, rows):
    (tmp_path / name).write_text("x\ny\nz\n")
    if name.endswith("parquet"):
        pq.write_table(pa.table({"x": [1, 2, 3, 4]}), tmp_path / name)
    assert look(Lines(path=name))["Lines"].rows == rows
