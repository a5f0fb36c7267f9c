import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest

from graftline.pipelines import plan, run
from graftline.pipelines.planning import latest_lock
from graftline.pipelines.store import Store
from graftline.stages import (
    Adapter,
    Execution,
    Llm,
    Made,
    Mapper,
    Model,
    Resources,
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
from graftline.stages.errors import CannotPlace, FileMissing, ModelNotFound, PortInUse, RequestError
from graftline.stages.expected import Expected, Usage, Volume
from graftline.stages.specification import Template

ROOT = Path(__file__).resolve().parents[2]


class Lines(Source):
    path: str = "lines.jsonl"

    def pins(self, resolve):
        return {"path": resolve.file(self.path)}

    def expected(self, given):
        return Expected(Volume(len(Path(given.file(self.path)).read_text().split())))

    def make_rows(self, context):
        yield from (Made({"answer": line}) for line in Path(context.file(self.path)).read_text().split())


class Length(Scorer):
    adds = {"length": "int64"}
    bad: Annotated[bool, Execution] = False

    def preflight(self, file):
        if self.bad:
            raise PortInUse("the port is taken", where=self.name)

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

    def expected(self, given):
        rows = given.rows(self.rows)
        return Expected({part: rows.share(share, "~") for part, share in zip(self.views, self.shares, strict=True)})

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

    def expected(self, given):
        return Expected(Volume(self.count, mark="~"), Usage(80, None, 2400, mark="~"))


class Tuned(Stage):
    makes = "adapter"
    model: Model
    rows: Rows


class Report(Stage):
    makes = "report"
    adapter: Adapter
    rows: Rows
    hidden: Annotated[bool, Execution] = True

    def expand(self):
        return {"tokens": Same(rows=self.rows)}

    def expected(self, given):
        return Expected(usage=Usage(2 * given.rows(self.rows).count, 100, 200, 300, 400))


@pytest.fixture(autouse=True)
def _lines(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTLINE_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "lines.jsonl").write_text("one\ntwo\nthree\nfour\n" * 2)


@pytest.fixture
def look(tmp_path):
    return lambda pipeline, **more: plan(pipeline, base=tmp_path, **more)


def steps(planned):
    return {step.name: step for step in planned.steps}


def test_the_order_and_what_is_fused(look):
    split = Split(rows=Same(rows=Length(rows=Lines())))
    tuned = Tuned(model=Llm("tiny"), rows=split.train)
    planned = look({"report": Report(adapter=tuned, rows=split.train), "tuned": tuned})
    at = {step.key: position for position, step in enumerate(planned.steps)}
    for step in planned.steps:
        assert all(at[each] < at[step.key] for each in step.inputs)
    found = steps(planned)
    assert set(found) == {"Lines", "Length", "Same", "Split", "Split.train", "tiny", "Tuned", "Report"}
    fused = [step for step in planned.steps if step.fused]
    assert [step.name for step in fused] == ["Length"] and planned.steps[at[fused[0].fused]].name == "Same"
    assert len([step for step in planned.steps if step.name == "Same"]) == 2, (
        "the hidden stage is a step like any other"
    )
    assert found["Length"].columns["length"] == "int64" and found["Tuned"].columns == {}
    assert planned.roots == {"report": found["Report"].key, "tuned": found["Tuned"].key}
    assert all(step.status == "run" for step in planned.steps)


def test_large_graphs_are_planned_at_once(look):
    stage = Lines()
    for number in range(30):
        stage = select.Concat(rows=(Same(rows=stage, label=f"l{number}"), Same(rows=stage, label=f"r{number}")))
    begin = time.perf_counter()
    assert len(look(stage).steps) == 91
    chain = Lines()
    for number in range(400):
        chain = Same(rows=chain, label=str(number))
    assert len([step for step in look(chain).steps if step.fused]) == 399
    assert time.perf_counter() - begin < 4


def test_what_is_cached_is_counted(look, tmp_path):
    run(Length(rows=Lines()), base=tmp_path, address="here")
    planned = look(select.TopK(rows=Length(rows=Lines()), by="length", k=3))
    assert [(step.name, step.status, step.rows, step.calls.requests) for step in planned.steps] == [
        ("Lines", "cached", 8, 0), ("Length", "cached", 8, 0), ("TopK", "run", 3, 0)
    ]  # fmt: skip
    assert [step.name for step in planned.to_run] == ["TopK"]


def test_a_stage_whose_inputs_are_gone_may_be_there(look, tmp_path):
    made = run(select.TopK(rows=Length(rows=Lines()), by="length", k=3), base=tmp_path, address="here")
    made.store.delete(made.store.name(made.record["stages"][0]["path"]))
    planned = look(select.TopK(rows=Length(rows=Lines()), by="length", k=3))
    assert [step.status for step in planned.steps] == ["run", "unknown inputs", "unknown inputs"]
    again = run(select.TopK(rows=Length(rows=Lines()), by="length", k=3), base=tmp_path, address="here")
    assert (again.ran, again.cached) == (1, 2), "the same rows came out, so the rest was there"


def test_all_faults_are_told_at_once(look):
    pipeline = {
        "a": Length(rows=Lines(path="gone.jsonl")),
        "b": Length(rows=Lines(path="gone.jsonl"), label="again"),
        "c": Judge(rows=Lines(), judge=Llm("./nowhere")),
    }
    with pytest.raises(RequestError) as caught:
        look(pipeline)
    text = str(caught.value)
    assert text.startswith("2 things are wrong") and "gone.jsonl" in text and "no such model directory" in text
    with pytest.raises(FileMissing):
        look({"a": pipeline["a"]})
    with pytest.raises(ModelNotFound):
        look({"c": pipeline["c"]})


def test_what_will_run_is_checked_before_it_does(look, tmp_path):
    pipeline = {
        "a": Length(rows=Lines(), bad=True), "b": Length(rows=Lines(), resources=Resources(cpus=4000.0), label="Large"),
        "c": Same(rows=Lines(), resources=Resources(gpus=99.0)),
    }  # fmt: skip
    with pytest.raises(RequestError, match="3 things are wrong") as caught:
        look(pipeline)
    assert "the port is taken" in str(caught.value) and "needs 4000 cpus" in str(caught.value)
    with pytest.raises(CannotPlace, match="99 gpus"):
        look(pipeline["c"])
    look(pipeline["c"], address="some-cluster:6379")
    run({"a": Length(rows=Lines()), "c": Same(rows=Lines())}, base=tmp_path, address="here")
    assert [step.name for step in look(pipeline).to_run] == [], "what is there needs nothing"


class Asking(Stage):
    """Has two others made."""

    makes = "report"
    inside: Annotated[Rows, Template]

    def foreseen(self):
        more = {"two": Asking(inside=Same(rows=self.inside))} if isinstance(self.inside, Lines) else {}
        return {"one": self.inside, **more}


class Trying(Stage):
    """Has one made that stands for five, of which some may be left out."""

    makes = "report"
    inside: Annotated[Stage, Template]

    def foreseen(self):
        return {"": self.inside}

    def expected(self, given):
        return Expected(times=5.0, times_mark="<=")


def test_what_stands_for_several_counts_as_often(look):
    inner = Report(adapter=Tuned(model=Llm("tiny"), rows=Lines()), rows=Lines())
    planned = look({"all": Trying(inside=inner), "lines": Lines()})
    (asked,) = (step for step in planned.later if step.name == "Report")
    assert asked.times == 5 and asked.why == "asked for by Trying, 5 times at most"
    assert asked.calls == Usage(80, 500, 1000, 1500, 2000, mark="<=") == planned.calls
    told = planned.to_dict()
    assert told["calls"] == {**Usage(80, 500, 1000, 1500, 2000).to_dict(), "mark": "<="}
    assert [step["rows"] for step in told["steps"] if step["name"] == "Lines"] == [{"kept": 8, "mark": ""}]


def test_what_will_be_asked_for_is_shown(look):
    planned = look(Asking(inside=Lines(label="inner"), label="top"))
    told = {step["name"]: step["why"] for step in planned.to_dict()["steps"]}
    assert told["top"] == "" and told["inner"] == "asked for by top" and told["Asking"] == "asked for by top"
    assert told["Same"] == "asked for by Asking"
    assert [step.name for step in planned.steps] == ["top"] == [step.name for step in planned.to_run]


def test_paths_count_from_the_callers_file(tmp_path):
    file = Path(__file__).parent / "lines.jsonl"
    with pytest.raises(FileMissing) as caught:
        plan(Lines())
    assert caught.value.where == str(file)


def test_models_stay_what_they_were_at_the_first_plan(look, tmp_path, monkeypatch):
    from graftline.stages.lm import hub

    commits = iter("abc")
    monkeypatch.setattr(hub, "commit", lambda name, revision: next(commits) * 40)

    class Uses(Stage):
        """A report on a model, which is not made in this test."""

        makes = "report"
        model: Model

    pipeline = Uses(model=Llm("someone/model"))
    first = look(pipeline, name="uses")
    store = Store(str(tmp_path / "store"))
    store.write_json("runs/20260101T000000Z-uses-aaaa/lock.json", first.pins.to_dict())
    assert latest_lock(store, "uses") == first.pins.to_dict() and latest_lock(store, "use") is None
    assert steps(look(pipeline, name="uses"))["Uses"].fingerprint == first.steps[-1].fingerprint
    assert steps(look(pipeline, name="other"))["Uses"].fingerprint != first.steps[-1].fingerprint


def test_code_that_changed_is_told(look, tmp_path, monkeypatch):
    pipeline = select.TopK(rows=Length(rows=Lines()), by="length", k=3)
    run(pipeline, base=tmp_path, address="here")
    from graftline.pipelines import sources

    monkeypatch.setattr(sources, "_shipped", lambda module: "changed")
    assert {step.name: step.why for step in look(pipeline).steps if step.why} == {
        "TopK": "its code has changed since, its version has not"
    }


def test_a_plan_is_plain_data(look):
    import json

    planned = look(Length(rows=Lines())).to_dict()
    assert json.loads(json.dumps(planned)) == planned
    assert [step["class"].rpartition(".")[2] for step in planned["steps"]] == ["Lines", "Length"]


@pytest.mark.real
def test_planning_imports_neither_ray_nor_torch_and_is_quick(tmp_path):
    code = (
        "import sys, time; begin = time.perf_counter()\n"
        "from graftline.pipelines.load_file import load; from graftline.pipelines import plan\n"
        "loaded = load(sys.argv[1]); print(len(plan(loaded.roots, base=loaded.base).steps))\n"
        "print(sorted({'ray', 'torch', 'transformers', 'pandas'} & set(sys.modules)), time.perf_counter() - begin)"
    )
    file = tmp_path / "small_pipeline.py"
    file.write_text(
        "from graftline.stages import Llm, Scorer, Source, select\n"
        "class Numbers(Source):\n    on_driver_node = True\n"
        "class Size(Scorer):\n    adds = {'size': 'int64'}\n"
        "def pipeline():\n    return {'a': select.TopK(rows=Size(rows=Numbers()), by='size', k=3), 'b': Llm('tiny')}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], env=os.environ, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    count, rest = done.stdout.splitlines()
    assert count == "4" and rest.startswith("[] ")
    assert float(rest.split()[1]) < 2
    example = str(ROOT / "examples" / "quickstart.py")  # whose rows are sampled, and their tokens counted
    done = subprocess.run(
        [sys.executable, "-c", code, example], env=os.environ, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("[] ")
