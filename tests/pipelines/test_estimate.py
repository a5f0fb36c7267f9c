from pathlib import Path

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

    def rows_expected(self, rows, file):
        return len(Path(file(self.path)).read_text().split())

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

    def rows_expected(self, rows, file):
        return {"train": round(rows["rows"] * self.shares[0]), "test": round(rows["rows"] * self.shares[1])}

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

    def rows_expected(self, rows, file):
        return self.count

    def calls_expected(self, rows):
        return (80, None, 2400)


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


def test_the_estimate_is_what_then_happens(look, tmp_path):
    split = Split(rows=Length(rows=Lines()))
    pipeline = select.TopK(rows=Same(rows=split.train), by="length", k=1)
    before = {name: step.rows for name, step in look(pipeline).items()}
    run(pipeline, base=tmp_path, address="here")
    counted = {name: step.rows for name, step in look(pipeline).items()}
    assert {name: rows for name, rows in counted.items() if name != "Same"} == {
        name: rows for name, rows in before.items() if name != "Same"
    }
