"""`Repeat`: what it refuses, that its rounds are ordinary stages, when it ends."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftline.pipelines import Run, plan, run
from graftline.stages import (
    Growing,
    Made,
    Mapper,
    Model,
    Previous,
    Repeat,
    Round,
    Rows,
    Scorer,
    Selector,
    Source,
    Stage,
    Until,
)
from graftline.stages.errors import InvalidField, MissingColumn, NothingKept, WrongKind
from graftline.stages.evaluate.figure import Figure
from graftline.stages.lm.reference import base_of
from graftline.stages.shapes import Verdict
from graftline.stages.specification import Plug
from graftline.stages.stage import View
from graftline.stages.value_graph import from_json, inputs, to_json

MADE: Counter[str] = Counter()


class Words(Source):
    most: int = 4

    def make_rows(self, context: Any) -> Any:
        for length in range(1, self.most + 1):
            yield Made({"messages": [{"role": "user", "content": "x" * length}]})


class Measured(Scorer):
    adds = {"length": "int64"}

    def score_rows(self, table: Any, context: Any) -> Any:
        return {"length": [len(each[0]["content"]) for each in table["messages"].to_pylist()]}


class Drop(Mapper):
    """Leaves out the rows of this length."""

    length: int

    def map_rows(self, table: Any, context: Any) -> Any:
        MADE["Drop"] += 1
        return table.filter([len(each[0]["content"]) != self.length for each in table["messages"].to_pylist()])


class Needs(Selector):
    needs = {"length": "number"}

    def select_rows(self, table: Any, context: Any) -> Any:
        return [Verdict(each) for each in table["id"].to_pylist()]


class Sides(Needs):
    needs = {}
    views = ("left", "right")


class Base(Stage):
    makes = "model"
    loss: float = 8.0

    def make(self, context: Any, out: Path, **inputs: Any) -> Any:
        (out / "model").mkdir()
        return {"loss": self.loss}


class Knob(Plug):
    seed: int = 0


class Better(Stage):
    """Halves the loss of a model."""

    makes = "model"
    model: Model
    rows: Rows
    knob: Knob = Knob()

    def make(self, context: Any, out: Path, model: Any, rows: Any) -> Any:
        MADE["Better"] += 1
        (out / "model").mkdir()
        (out / "model" / "config.json").write_text(str(self.knob.seed))
        return {"loss": model.metrics["loss"] / 2, "seed": self.knob.seed, "nan": float("nan")}


class Judge(Stage):
    makes = "report"
    model: Model

    def make(self, context: Any, out: Path, model: Any) -> Any:
        MADE["Judge"] += 1
        (out / "report.json").write_text("{}")
        return {"right": 1 - model.metrics["loss"] / 8}


CLASSES = {
    kind.qualified: kind for kind in (Words, Measured, Drop, Needs, Sides, Base, Knob, Better, Judge)
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forget() -> None:
    MADE.clear()


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., Run]:
    def call(pipeline: Any) -> Run:
        return run(pipeline, str(tmp_path / "store"), base=tmp_path, name="p", address="here")

    return call


def dropping(at_most: int = 3, **fields: Any) -> Repeat:
    return Repeat(body=Drop(rows=Previous(), length=Round()), start=Words(), at_most=at_most, **fields)


def bettering(at_most: int = 3, **fields: Any) -> Repeat:
    body = Better(model=Previous(), rows=Words(), knob=Knob(seed=Round(times=10, plus=1)))
    return Repeat(body=body, start=Base(), at_most=at_most, **fields)


# --- the value --------------------------------------------------------------------------------------------------


def test_it_is_a_value() -> None:
    for one, other in ((dropping(), dropping(4)), (bettering(), bettering(until=Until(nothing_kept=True)))):
        assert from_json(to_json({"r": one}), CLASSES) == {"r": one} != {"r": other}
        assert pickle.loads(pickle.dumps(one)) == one
    assert dropping().kind == "rows" and bettering().kind == "model"
    assert base_of(bettering()) == Base(), "a model at its root is that of the first round"
    assert dropping().replace("start.most", 9).start.most == 9
    assert dropping().replace("body.length", 2).body.length == 2


def test_a_number_may_grow_from_round_to_round() -> None:
    body = Better(model=Previous(), rows=Words(), knob=Knob(seed=Growing(first=40, factor=1.2)))
    loop = Repeat(body=body, start=Base(), at_most=5)
    assert from_json(to_json({"r": loop}), CLASSES) == {"r": loop}
    rounds = list(loop.foreseen().values())
    assert [each.knob.seed for each in rounds] == [40, 48, 58, 69, 83]
    plain = Better(model=Base(), rows=Words(), knob=Knob(seed=40))
    assert rounds[0] == plain.replace("label", "Better, round 1"), "a round is a plain value"
    for wrong in ({"first": 0, "factor": 1.2}, {"first": 40, "factor": 0.9}):
        with pytest.raises(InvalidField, match="greater than or equal to 1"):
            Growing(**wrong)


def test_it_reads_its_start_and_what_no_round_changes() -> None:
    assert set(inputs(dropping())) == {Words()}
    assert set(inputs(bettering())) == {Base(), Words()}
    scored = Repeat(body=Drop(rows=Previous(), length=1), start=Measured(rows=Words()), at_most=2)
    assert set(inputs(scored)) == {Measured(rows=Words())}


def test_a_body_without_a_placeholder_is_refused() -> None:
    with pytest.raises(InvalidField, match=r"Repeat\.body: is the same in every round.*Previous"):
        Repeat(body=Drop(rows=Words(), length=1), start=Words(), at_most=2)


def test_columns_are_checked_when_the_rounds_are_put_together() -> None:
    body = Needs(rows=Drop(rows=Previous(), length=Round()))
    Repeat(body=body, start=Measured(rows=Words()), at_most=2)
    with pytest.raises(MissingColumn, match="'length', which Drop does not have"):
        Repeat(body=body, start=Words(), at_most=2)
    with pytest.raises(MissingColumn, match="would add the column 'length'"):
        Repeat(body=Measured(rows=Previous()), start=Words(), at_most=2)
    with pytest.raises(WrongKind, match=r"Drop\.rows: takes rows, but Base makes model"):
        Repeat(body=Drop(rows=Previous(), length=1), start=Base(), at_most=2)
    with pytest.raises(InvalidField, match=r"Drop\.length.*integer"):
        Drop(rows=Previous(), length=Previous())


def test_parts_must_be_named() -> None:
    with pytest.raises(WrongKind, match=r"Repeat\.body: Sides makes several parts.*\.left"):
        Repeat(body=Sides(rows=Previous()), start=Words(), at_most=2)
    left = Repeat(body=View(of=Sides(rows=Previous()), part="left"), start=Words(), at_most=2)
    assert left.kind == "rows"


def test_a_loop_within_a_loop_keeps_its_own_placeholders() -> None:
    inner = Repeat(body=Drop(rows=Previous(), length=Round(plus=1)), start=Drop(rows=Previous(), length=Round()),
                   at_most=2)  # fmt: skip
    outer = Repeat(body=inner, start=Words(), at_most=2)
    assert inner.is_open and not outer.is_open
    first = outer.stage
    assert isinstance(first, Repeat) and first.body == inner.body
    assert first.start == Drop(rows=Words(), length=1)


# --- whole runs ---------------------------------------------------------------------------------------------------


def test_rounds_make_what_nested_stages_make(go: Any) -> None:
    looped = go(dropping(3))["result"]
    nested = go(Drop(rows=Drop(rows=Drop(rows=Words(), length=1), length=2), length=3))["result"]
    assert looped.digest == nested.digest and looped.count == 1
    assert looped.rows().equals(nested.rows()) and looped.kind == "rows"
    assert [each["rows"] for each in looped.metrics["rounds"]] == [3, 2, 1] and looped.metrics["rounds_made"] == 3


def test_no_round_is_made_twice(go: Any) -> None:
    go(dropping(2))
    assert MADE["Drop"] == 2 and go(dropping(2)).ran == 0
    assert go(dropping(3))["result"].metrics["rounds_made"] == 3 and MADE["Drop"] == 3


def test_rounds_that_grow_are_resumed(go: Any) -> None:
    def growing(at_most: int) -> Repeat:
        return Repeat(body=Drop(rows=Previous(), length=Growing(first=1, factor=1.7)), start=Words(), at_most=at_most)

    go(growing(2))
    assert MADE["Drop"] == 2 and go(growing(2)).ran == 0
    looped = go(growing(3))["result"]
    assert MADE["Drop"] == 3 and looped.count == 1
    assert looped.digest == go(dropping(3))["result"].digest, "1, 2 and 3 as well, for 1, 1.7 and 2.89"


def test_a_model_that_gets_better(go: Any) -> None:
    artefact = go(bettering(3))["result"]
    assert artefact.metrics["loss"] == 1.0 and artefact.metrics["seed"] == 31
    assert (artefact.directory("model") / "config.json").read_text() == "31"


def test_it_ends_where_a_metric_is_reached(go: Any) -> None:
    artefact = go(bettering(9, until=Until(metric="loss", at_most=2.0)))["result"]
    assert artefact.metrics["rounds_made"] == 2 and "reached in round 2" in artefact.metrics["ended"]
    between = go(bettering(9, until=Until(metric="loss", at_most=2.0, at_least=1.5)))["result"]
    assert between.metrics["rounds_made"] == 2
    assert go(bettering(2, until=Until(metric="nan", at_most=1.0)))["result"].metrics["rounds_made"] == 2
    assert go(dropping(3, until=Until(metric="rows", at_most=2.0)))["result"].count == 2
    with pytest.raises(InvalidField, match=r"Until\.metric: a round has no 'accuracy'.*loss"):
        go(bettering(2, until=Until(metric="accuracy", at_least=1.0)))


def test_it_ends_where_a_report_on_the_round_says_so(go: Any) -> None:
    figure = Figure(report=Judge(model=Previous()), name="right")
    artefact = go(bettering(9, until=Until(metric=figure, at_least=0.8)))["result"]
    assert artefact.metrics["loss"] == 1.0 and MADE["Judge"] == MADE["Better"] == 3


def test_it_ends_where_nothing_is_kept_any_more(go: Any) -> None:
    artefact = go(dropping(9, until=Until(nothing_kept=True)))["result"]
    assert artefact.count == 1 and artefact.metrics["rounds_made"] == 3
    assert "round 4 kept nothing" in artefact.metrics["ended"]
    with pytest.raises(NothingKept):
        go(dropping(9))
    all_gone = Repeat(body=Drop(rows=Previous(), length=1), start=Words(most=1), at_most=2,
                      until=Until(nothing_kept=True))  # fmt: skip
    with pytest.raises(NothingKept):
        go(all_gone)


def test_plan_shows_the_rounds_that_will_be_made(tmp_path: Path) -> None:
    def names(stage: Stage) -> list[str]:
        steps = plan(stage, str(tmp_path / "store"), base=tmp_path).to_dict()["steps"]
        return [step["name"] for step in steps if step["why"].startswith("asked for")]

    assert names(dropping(3)) == ["Drop, round 1", "Drop, round 2", "Drop, round 3"]
    assert names(dropping(3, until=Until(nothing_kept=True))) == ["Drop, round 1"]
    growing = Drop(rows=Previous(), length=Growing(first=1, factor=2.0))
    later = Repeat(body=growing, start=Words(), at_most=2, until=Until(nothing_kept=True))
    assert names(later) == ["Drop, round 1", "Drop, round 2"], "later rounds take more than the first"
