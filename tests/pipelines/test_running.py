"""Whole runs in this process: what is cached, what is written, what is refused, how it continues."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import pytest

from graftline.pipelines import Budget, plan, retry, run, runner
from graftline.pipelines.artefacts import Artefacts
from graftline.pipelines.running import Run
from graftline.pipelines.store import Store
from graftline.stages import (
    Execution,
    Llm,
    Made,
    Mapper,
    Rows,
    Scorer,
    Selector,
    Source,
    Stage,
    Verdict,
    View,
    select,
    serve,
)
from graftline.stages.errors import (
    BudgetSpent,
    FileMissing,
    InvalidField,
    NothingKept,
    RequestError,
    RunError,
    StoreFailed,
    StoreRefused,
    TooManyFailed,
    UnknownStage,
    WorldError,
)

CALLED: Counter[str] = Counter()
"""How often each stage's function was called in this test."""


class Texts(Source):
    """Rows of a file: one word a line; a line `!` is a bad one."""

    path: str
    times: Annotated[int, Execution] = 1

    def pins(self, resolve):
        return {"path": resolve.file(self.path)}

    def make_rows(self, context):
        CALLED[self.name] += 1
        for line in Path(context.file(self.path)).read_text().split():
            yield Made(
                {"messages": [{"role": "user", "content": line}]}, *(("failed", "bad line") if line == "!" else ())
            )


class Length(Scorer):
    adds = {"length": "int64"}
    factor: int = 1
    fault: Annotated[str, Execution] = ""

    def score_rows(self, table, context):
        CALLED[self.name] += 1
        if self.fault == "world":
            raise WorldError("the server is down")
        texts = [messages[0]["content"] for messages in table["messages"].to_pylist()]
        if self.fault in texts:
            raise ValueError(f"cannot measure {self.fault}")
        return {"length": [self.factor * len(text) for text in texts]}


class Short(Mapper):
    """Leaves out long rows."""

    most: int = 3

    def map_rows(self, table, context):
        CALLED[self.name] += 1
        fine = [len(messages[0]["content"]) <= self.most for messages in table["messages"].to_pylist()]
        return table.filter(fine)


class Halves(Selector):
    """Two parts, by the first letter."""

    views = ("low", "high")
    at: str = "n"

    @property
    def low(self):
        return View(of=self, part="low")

    @property
    def high(self):
        return View(of=self, part="high")

    def select_rows(self, table, context):
        CALLED[self.name] += 1
        for row, messages in zip(table["id"].to_pylist(), table["messages"].to_pylist(), strict=True):
            yield Verdict(row, part="low" if messages[0]["content"] < self.at else "high")


class Summary(Stage):
    """A report on rows."""

    makes = "report"
    rows: Rows
    others: tuple[Rows, ...] = ()
    fault: Annotated[str, Execution] = ""

    def make(self, context, out, rows, others=()):
        CALLED[self.name] += 1
        context.log(1, loss=2.0)
        context.log(1, loss=1.0)
        context.progress(1, 1)
        (out / "report.json").write_text(json.dumps({"rows": rows.count}))
        (out / "times.txt").write_text(str(time.time()))
        if self.fault:
            raise RuntimeError(self.fault)
        return {
            "rows": rows.count,
            "others": sum(each.count for each in others),
            "_volatile": ["times.txt"],
            "nan": float("nan"),
        }


@pytest.fixture(autouse=True)
def _forget():
    CALLED.clear()


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("a bb ccc dddd pp qq rrrrr")
    return path


@pytest.fixture
def go(tmp_path):
    """Runs a pipeline in this process."""

    def call(pipeline, store="store", **more):
        return run(pipeline, str(tmp_path / store), base=tmp_path, address="here", **more)

    return call


def status(made):
    return {line["name"]: line["status"] for line in made.record["stages"]}


def files(store, pattern):
    return sorted(path.relative_to(store).as_posix() for path in Path(store).glob(pattern))


# --- caching ----------------------------------------------------------------------------------------------------


def chain(factor=1, k=3, **more):
    return select.TopK(rows=Length(rows=Texts(path="words.txt"), factor=factor, **more), by="length", k=k)


def test_a_run_and_the_same_again(go, words):
    first = go(chain(), name="words", parameters={"k": 3})
    assert (first.state, first.ran, first.cached) == ("done", 3, 0)
    assert sorted(first["result"].rows(["length"])["length"].to_pylist()) == [3, 4, 5]
    again = go(chain(), name="words")
    assert (again.ran, again.cached) == (0, 3) and CALLED == {"Texts": 1, "Length": 1}
    assert again["result"].digest == first["result"].digest and list(again) == ["result"]
    with pytest.raises(UnknownStage, match="no 'other'"):
        first["other"]


def test_execution_fields_do_not_matter_and_semantic_ones_do(go, words):
    go(chain())
    renamed = chain(label="Called otherwise", batch_size=2, max_failed=0.5)
    assert go(renamed).ran == 0
    assert go(chain(k=2)).ran == 1 and CALLED["Length"] == 1, "a threshold never scores again"
    assert go(chain(factor=2)).ran == 2 and CALLED["Texts"] == 1


def test_files_count_by_content(go, words):
    go(chain())
    words.touch()
    (words.parent / "copy.txt").write_text(words.read_text())
    copied = select.TopK(rows=Length(rows=Texts(path="copy.txt")), by="length", k=3)
    assert go(chain()).ran == 0 and go(copied).ran == 0
    words.write_text("a bb ccc dddd pp qq rrrr!")
    assert go(chain()).ran == 3


def test_equal_content_upstream_stops_there(go, words, tmp_path):
    first = go(chain(), name="words")
    made = retry("Texts", store=str(tmp_path / "store"), address="here")
    assert status(made) == {"Texts": "ran", "Length": "cached", "TopK": "cached"}, "the same digest came out"
    lines = [line for line in made.record["stages"] if line["name"] == "Texts"]
    assert lines[0]["path"] != first.record["stages"][0]["path"]
    manifest = Artefacts(made.store).at(made.store.name(lines[0]["path"])).manifest
    assert manifest["generation"] == 1
    assert go(chain()).ran == 0


def test_other_content_upstream_runs_what_depends_on_it(go, words, tmp_path, monkeypatch):
    go({"a": chain(), "b": Summary(rows=Texts(path="words.txt"))}, name="words")
    monkeypatch.setattr(
        Texts, "make_rows", lambda self, context: iter([Made({"messages": [{"role": "user", "content": "new"}]})])
    )
    made = retry("Texts", "latest", str(tmp_path / "store"), address="here")
    assert status(made) == dict.fromkeys(("Texts", "Length", "TopK", "Summary"), "ran")
    assert made["a"].count == 1 and made["b"].metrics["rows"] == 1
    assert go(chain()).ran == 0, "the new generation is in force"


def test_one_fingerprint_runs_once(go, words):
    made = go({"a": chain(), "b": chain(label="The same"), "c": chain(batch_size=1)})
    assert CALLED == {"Texts": 1, "Length": 1}
    assert made["a"].path == made["b"].path == made["c"].path
    assert (made.ran, made.cached) == (3, 4)


def test_ray_is_not_even_imported_when_all_is_there(go, words, tmp_path, monkeypatch):
    go(chain())
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it raises
    made = run(chain(), str(tmp_path / "store"), base=tmp_path)
    assert (made.ran, made.cached) == (0, 3)


# --- what is written ----------------------------------------------------------------------------------------------


def test_chains_are_fused_and_written_at_their_end(go, words, tmp_path):
    made = go(Length(rows=Short(rows=Texts(path="words.txt"))))
    store = tmp_path / "store"
    assert not files(store, "artefacts/Short-*")
    assert status(made) == dict.fromkeys(("Texts", "Short", "Length"), "ran")
    short = next(line for line in made.record["stages"] if line["name"] == "Short")
    assert short["rows"] == {"in": 7, "carried": 7, "created": 0, "kept": 5, "filtered": {"left out": 2}, "failed": {}}
    manifest = made["result"].manifest
    assert [each["stage"] for each in manifest["chain"]] == ["Short"] and manifest["rows"]["in"] == 5
    assert [name for name in manifest["files"] if name.startswith("chain/0-Short/filtered/")]
    assert manifest["parents"][0]["digest"] == made.record["stages"][0]["digest"]
    again = go(Length(rows=Short(rows=Texts(path="words.txt"))))
    assert (again.ran, again.cached) == (0, 3)
    assert next(line for line in again.record["stages"] if line["name"] == "Short")["rows"] == short["rows"]


def test_rows_are_written_where_the_graph_forks(go, words, tmp_path):
    short = Short(rows=Texts(path="words.txt"))
    go({"a": Length(rows=short), "b": Length(rows=short, factor=2)})
    assert len(files(tmp_path / "store", "artefacts/Short-*/*/artefact.json")) == 1 and CALLED["Short"] == 1
    assert go(Length(rows=short)).ran == 0, "and are used where it does not fork any more"


@pytest.mark.parametrize("reader", ["root", "report", "selector"])
def test_rows_are_written_where_another_stage_reads(go, words, tmp_path, reader):
    short = Short(rows=Texts(path="words.txt"))
    length = Length(rows=short)
    go(
        {
            "root": {"a": length, "b": short},
            "report": Summary(rows=short),
            "selector": select.TopK(rows=length, by="length", k=1),
        }[reader]
    )
    assert bool(files(tmp_path / "store", "artefacts/Short-*/*/artefact.json")) is (reader != "selector")
    assert bool(files(tmp_path / "store", "artefacts/Length-*/*/artefact.json")) is (reader != "report")


def test_a_fused_stage_that_is_there_is_not_run_again(go, words):
    go(Short(rows=Texts(path="words.txt")))
    go(Length(rows=Short(rows=Texts(path="words.txt"))))
    assert CALLED["Short"] == 1


def test_parts_of_a_stage(go, words):
    halves = Halves(rows=Texts(path="words.txt"))
    made = go({"low": Length(rows=halves.low), "high": Summary(rows=halves.high), "part": halves.low})
    assert made["low"].count == 4 and made["high"].metrics["rows"] == 3 and made["part"].count == 4
    assert CALLED["Halves"] == 1
    manifest = made["part"].manifest
    assert {part: view["rows"] for part, view in manifest["views"].items()} == {"low": 4, "high": 3}
    lines = {line["name"]: line for line in made.record["stages"]}
    assert lines["Halves.low"]["part"] == "low" and lines["Halves.low"]["rows"]["kept"] == 4
    assert lines["Halves.low"]["digest"] == manifest["views"]["low"]["digest"] != lines["Halves.high"]["digest"]
    assert made.ran == 4, "parts are not counted"


def test_a_change_in_one_part_leaves_the_other_alone(go, words):
    def pipeline(at):
        halves = Halves(rows=Texts(path="words.txt"), at=at)
        return {"low": Summary(rows=halves.low), "high": Summary(rows=halves.high)}

    assert go(pipeline("n")).ran == 4 and go(pipeline("o")).ran == 3, "another specification is asked for again"


def test_an_empty_part_is_a_file_without_rows(go, words):
    halves = Halves(rows=Texts(path="words.txt"), at="zzz")
    made = go({"low": halves.low, "high": halves.high})
    assert made["high"].count == 0 and made["high"].rows().num_rows == 0 and made["low"].count == 7


def test_the_manifest(go, words, tmp_path):
    made = go(Summary(rows=Texts(path="words.txt"), others=(Texts(path="words.txt"),)))
    manifest = made["result"].manifest
    assert manifest["metrics"] == {"rows": 7, "others": 7, "nan": None}
    assert manifest["rows"] is None and manifest["kind"] == "report" and manifest["reproducible"] is True
    assert set(manifest["files"]) == {"report.json", "times.txt", "log.jsonl"}
    assert [json.loads(line) for line in (Path(made["result"].path) / "log.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 1.0}
    ]
    metrics = [json.loads(line) for line in (Path(made.path) / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"], line["loss"]) for line in metrics] == [
        ("Summary", 1, 2.0),
        ("Summary", 1, 1.0),
    ]
    digest = manifest["digest"]
    assert (
        go(Summary(rows=Texts(path="words.txt"), others=(Texts(path="words.txt"),)), "other")["result"].digest == digest
    )
    assert not files(tmp_path / "store", "scratch/Summary*/*"), "scratch goes with the commit"


def test_the_record(go, words, tmp_path):
    made = go({"best": chain()}, name="words", parameters={"k": 3, "how": Path("x")}, file="words.py")
    folder = tmp_path / "store" / "runs" / made.id
    assert made.id.split("-")[1] == "words" and len(made.id.split("-")[2]) == 4
    record = json.loads((folder / "run.json").read_text())
    assert record == made.record and record["parameters"] == {"k": 3, "how": "x"} and record["file"] == "words.py"
    assert record["results"] == {"best": record["stages"][-1]["key"]}
    lock = json.loads((folder / "lock.json").read_text())
    assert list(lock["files"]) == ["words.txt"] and len(lock["files"]["words.txt"]) == 64
    assert json.loads((folder / "pipeline.json").read_text())["base"] == str(tmp_path)
    assert Run.find(made.store).id == made.id == Run.find(made.store, made.id[:12]).id
    assert Run.find(made.store)["best"].digest == made["best"].digest
    with pytest.raises(UnknownStage, match="no run nothing"):
        Run.find(made.store, "nothing")
    assert made.line(record["stages"][0]["fingerprint"][:6])["name"] == "Texts"
    with pytest.raises(UnknownStage, match="no stage 'Nobody'"):
        made.line("Nobody")


def test_events(go, words):
    heard = []
    go(chain(), watch=lambda event: heard.append((event.kind, event.name)))
    assert [each for each in heard if each[0] != "progress"] == [
        ("planned", "Texts"), ("planned", "Length"), ("planned", "TopK"), ("started", "Texts"), ("done", "Texts"),
        ("started", "Length"), ("done", "Length"), ("started", "TopK"), ("done", "TopK"),
    ]  # fmt: skip
    assert ("progress", "Length") in heard
    heard.clear()
    go(chain(), watch=lambda event: heard.append((event.kind, event.name)))
    assert heard[-3:] == [("cached", "Texts"), ("cached", "Length"), ("cached", "TopK")]


def test_independent_branches_run_side_by_side(go, words, monkeypatch):
    both = threading.Barrier(2, timeout=10)
    monkeypatch.setattr(
        Texts, "make_rows", lambda self, context: (both.wait() and ()) or iter([Made({"answer": self.path})])
    )
    (words.parent / "more.txt").write_text("x")
    made = go({"a": Texts(path="words.txt"), "b": Texts(path="more.txt")})
    assert made.ran == 2


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_failed_row_fails_alone(go, words):
    made = go(Length(rows=Texts(path="words.txt"), fault="bb", max_failed=0.2))
    manifest = made["result"].manifest
    assert manifest["rows"]["failed"] == {"ValueError: cannot measure bb": 1} and manifest["rows"]["kept"] == 6
    (row,) = made["result"].rows(outcome="failed").to_pylist()
    assert row["messages"][0]["content"] == "bb" and row["reason"] == "ValueError: cannot measure bb"


def test_too_many_failed_rows_are_refused(go, words, tmp_path):
    words.write_text("a ! c")
    with pytest.raises(TooManyFailed, match="1 of 3 rows failed") as caught:
        go(chain())
    assert caught.value.where == "Texts"
    assert not files(tmp_path / "store", "artefacts/*/*/*"), "nothing is committed, nothing is left"
    record = json.loads(next((tmp_path / "store").glob("runs/*/run.json")).read_text())
    assert record["state"] == "failed" and record["error"]["type"] == "TooManyFailed"
    assert [line["status"] for line in record["stages"]] == ["failed", "pending", "pending"]
    words.write_text("a bb ccc bb")
    with pytest.raises(TooManyFailed, match="cannot measure bb"):
        go(Length(rows=Texts(path="words.txt"), fault="bb"))


def test_nothing_kept_is_refused(go, words):
    with pytest.raises(NothingKept, match="none of 7 rows"):
        go(Length(rows=Short(rows=Texts(path="words.txt"), most=0)))


def test_what_was_made_before_a_failure_is_kept(go, words):
    with pytest.raises(WorldError, match="server is down"):
        go(chain(fault="world"))
    assert go(chain()).cached == 1


def test_an_authors_error_names_the_stage_and_keeps_the_traceback(go, words, tmp_path):
    with pytest.raises(RunError, match="RuntimeError: broken") as caught:
        go(Summary(rows=Texts(path="words.txt"), fault="broken", label="My report"))
    assert caught.value.where == "My report"
    path = Path(caught.value.do.rpartition(" ")[2])
    assert "raise RuntimeError(self.fault)" in path.read_text()
    assert not files(tmp_path / "store", "artefacts/Summary-*/*/*")


def test_one_branch_fails_and_the_other_is_kept(go, words):
    with pytest.raises(WorldError):
        go({"bad": Length(rows=Texts(path="words.txt"), fault="world"), "good": Summary(rows=Texts(path="words.txt"))})
    made = go(Summary(rows=Texts(path="words.txt")))
    assert made.cached >= 1


def test_a_half_written_attempt_is_not_taken(go, words, tmp_path):
    made = go(chain())
    digest, part = made["result"].digest, next(Path(made["result"].path).glob("rows/*"))
    part.write_bytes(part.read_bytes()[:-10])
    again = go(chain())
    assert status(again) == {"Texts": "cached", "Length": "cached", "TopK": "ran"}
    assert again["result"].digest == digest


def test_the_request_is_refused_before_anything_starts(go, tmp_path):
    missing = {"a": chain(), "b": Length(rows=Texts(path="other.txt"))}
    with pytest.raises(FileMissing, match="2 things are wrong") as caught:
        go(missing)
    assert str(tmp_path / "words.txt") in str(caught.value) and str(tmp_path / "other.txt") in str(caught.value)
    assert not (tmp_path / "store").exists() and isinstance(caught.value, RequestError)


def test_a_store_that_cannot_be_used(go, words, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreRefused):
        go(chain(), store="file")
    assert CALLED == {}


def test_the_budget_of_hours(go, words, monkeypatch):
    with pytest.raises(BudgetSpent, match="hours is spent") as caught:
        go(chain(), budget=Budget(hours=1e-12))
    assert caught.value.where == "Texts" and "larger budget" in caught.value.do


def test_an_interrupt_is_recorded_and_the_run_continues(go, words, tmp_path):
    original = runner.Runner._advance

    def advance(self, graph, stage, own):
        if stage.name == "TopK" and self.known.get(graph, stage.rows) is not None:
            raise KeyboardInterrupt
        return original(self, graph, stage, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.Runner, "_advance", advance)
        with pytest.raises(KeyboardInterrupt):
            go(chain())
    record = json.loads(next((tmp_path / "store").glob("runs/*/run.json")).read_text())
    assert record["state"] == "interrupted" and record["finished"]
    assert [line["status"] for line in record["stages"]] == ["ran", "ran", "pending"]
    made = go(chain())
    assert (made.ran, made.cached) == (1, 2)


def test_plan_says_what_run_then_does(go, words, tmp_path):
    store = str(tmp_path / "store")
    planned = plan(chain(), store, base=tmp_path)
    assert [(step.name, step.status, step.rows) for step in planned.steps] == [
        ("Texts", "run", None), ("Length", "run", None), ("TopK", "run", None)
    ]  # fmt: skip
    go(chain())
    planned = plan(chain(k=2), Store(store), base=tmp_path)
    assert [(step.name, step.status, step.rows) for step in planned.steps] == [
        ("Texts", "cached", 7), ("Length", "cached", 7), ("TopK", "run", 2)
    ]  # fmt: skip


class Large(Source):
    """Rows that do not compress."""

    kilobytes: int = 3000

    def make_rows(self, context):
        import random

        text = random.Random(0)
        for _ in range(self.kilobytes):
            yield Made({"answer": text.randbytes(512).hex()})


class Weights(Stage):
    """A model whose library has its own words for a full disk."""

    makes = "model"

    def make(self, context, out):
        import numpy as np
        from safetensors.numpy import save_file

        save_file({"weight": np.random.default_rng(0).random(400_000)}, out / "model.safetensors")
        return {}


@pytest.mark.parametrize("stage", [Large(), Weights()], ids=["rows", "files"])
def test_a_disk_that_fills_up(small_disk, tmp_path, stage):
    store = Store(str(small_disk / "store"))
    with pytest.raises(StoreFailed, match="the disk is full") as caught:
        run(stage, store, base=tmp_path, address="here")
    assert "free space" in caught.value.do
    assert not files(small_disk / "store", "artefacts/*/*/*"), "nothing half-written is left, or taken as done"
    record = json.loads(next((small_disk / "store").glob("runs/*/run.json")).read_text())
    assert record["state"] == "failed" and record["error"]["type"] == "StoreFailed"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert run(stage, store, base=tmp_path, address="here").ran == 1


def test_a_record_that_cannot_be_written_ends_the_run(go, words, monkeypatch):
    original = Store.write_json

    def full(self, name, value):
        if name.endswith("run.json") and value["stages"] and value["stages"][0]["status"] == "ran":
            raise StoreFailed("the disk is full", where=name)
        original(self, name, value)

    monkeypatch.setattr(Store, "write_json", full)
    with pytest.raises(StoreFailed, match="the disk is full"):
        go(chain())


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_service_needs_ray_and_says_so_before_anything_starts(words, tmp_path):
    service = serve.Service(model=Llm("tiny", engine="scripted"))
    with pytest.raises(InvalidField, match="a service runs on Ray"):
        run(service, str(tmp_path / "store"), base=tmp_path, address="here")
    assert not (tmp_path / "store").exists()
