"""A stage that trains in no time: what its trials measure is computed from its fields, and how often is counted."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from graftline.pipelines import Run, run
from graftline.stages import (
    Adapter,
    Execution,
    Llm,
    Made,
    Model,
    Plug,
    Rows,
    Scorer,
    Selector,
    Source,
    Stage,
    Verdict,
    read,
    select,
    train,
)  # fmt: skip
from graftline.stages.errors import RunError
from graftline.stages.evaluate.figure import Figure
from graftline.stages.stage import Resources, View

MADE: Counter[str] = Counter()
"""How often a stage of this class was made in this test."""


class Brain(Stage):
    makes = "model"
    model: str = "tiny"

    def make(self, context: Any, out: Path) -> dict[str, Any]:
        (out / "model").mkdir()
        return {}


class Texts(Source):
    count: int = 12

    def make_rows(self, context: Any) -> Any:
        MADE["Texts"] += 1
        for index in range(self.count):
            yield Made({"messages": [{"role": "user", "content": f"text {index}"}], "answer": "yes"})


class Halves(Selector):
    views = ("train", "dev", "test")
    seed: int = 0

    @property
    def train(self) -> View:
        return View(of=self, part="train")

    @property
    def dev(self) -> View:
        return View(of=self, part="dev")

    @property
    def test(self) -> View:
        return View(of=self, part="test")

    def select_rows(self, table: Any, context: Any) -> Any:
        for place, row in enumerate(table["id"].to_pylist()):
            yield Verdict(row, part=self.views[place % 3])


class Length(Scorer):
    adds = {"length": "int64"}
    factor: int = 1

    def score_rows(self, table: Any, context: Any) -> Any:
        MADE["Length"] += 1
        return {"length": [self.factor * len(each[0]["content"]) for each in table["messages"].to_pylist()]}


class First(Selector):
    k: int = 2

    def select_rows(self, table: Any, context: Any) -> Any:
        for place, row in enumerate(table["id"].to_pylist()):
            yield Verdict(row) if place < self.k else Verdict(row, "filtered", "not first")


class Both(Source):
    rows: tuple[Rows, ...]


class Knob(Plug):
    rank: int = 4
    lr: float = 0.1


class Fit(Stage):
    """Its loss is (rank - 8)² + 1000/rows, plus lr; a negative rank diverges, a rank of 13 measures NaN."""

    makes = "adapter"
    model: Model
    rows: Rows
    held_out: Rows | None = None
    knob: Knob = Knob()
    steps: int = 1
    names: tuple[str, ...] = ("a",)
    workers: Annotated[int, Execution] = 1
    broken: ClassVar[bool] = True
    """Whether a negative rank diverges."""

    def make(self, context: Any, out: Path, rows: Any, **inputs: Any) -> dict[str, Any]:
        MADE["Fit"] += 1
        if self.knob.rank < 0 and self.broken:
            raise RunError("the loss is nan at step 1", where="Fit")
        loss = (self.knob.rank - 8) ** 2 + 1000 / rows.count + self.knob.lr
        (out / "adapter").mkdir()
        (out / "adapter" / "weights.json").write_text(json.dumps([self.knob.rank, rows.count]))
        metrics = {"rows": rows.count, "adapter_digest": f"{self.knob.rank:064x}"}
        return metrics | (
            {} if self.held_out is None else {"eval_loss": loss if self.knob.rank != 13 else float("nan")}
        )


class Judge(Stage):
    """A report on adapters: its figure `right` is the adapter's rank over 100."""

    makes = "report"
    model: Model
    adapters: dict[str, Adapter] = {}
    rows: Rows

    def metric(self, name: str) -> Figure:
        return Figure(report=self, name=name)

    def make(self, context: Any, out: Path, rows: Any, adapters: Any, **inputs: Any) -> dict[str, Any]:
        MADE["Judge"] += 1
        (out / "report.json").write_text("{}")
        ranks = {name: json.loads((made.directory("adapter") / "weights.json").read_text())[0]
                 for name, made in adapters.items()}  # fmt: skip
        return {f"right/{name}": rank / 100 for name, rank in ranks.items()}


@pytest.fixture(autouse=True)
def _forget() -> None:
    MADE.clear()
    Fit.broken = True


@pytest.fixture
def made() -> Counter[str]:
    """How often each stage was made."""
    return MADE


@pytest.fixture
def parts() -> Any:
    """The classes of this file."""
    import types

    return types.SimpleNamespace(
        Brain=Brain, Both=Both, Texts=Texts, Halves=Halves, Length=Length, First=First, Knob=Knob, Fit=Fit, Judge=Judge
    )


@pytest.fixture
def pipe(parts: Any) -> Any:
    """A pipeline up to training: text → length → split → first k → fit."""
    import types

    split = parts.Halves(rows=parts.Length(rows=parts.Texts()))
    chosen = parts.First(rows=split.train)
    tuned = parts.Fit(model=Brain(), rows=chosen, held_out=split.dev)
    report = parts.Judge(model=Brain(), adapters={"x": tuned}, rows=split.dev)
    return types.SimpleNamespace(split=split, chosen=chosen, tuned=tuned, report=report, student=Brain())


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., Run]:
    """Runs a pipeline in this process."""

    def call(pipeline: Any, store: str = "store", **more: Any) -> Run:
        return run(pipeline, str(tmp_path / store), base=tmp_path, name="p", **{"address": "here", **more})

    return call


SECONDS = 120
"""What a sweep on a cluster may take: it must not hang."""


def within(seconds: float, go: Callable[[], Run]) -> Run:
    """What a function answers; it fails where that takes longer."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(go())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"it still runs after {seconds} s"
    if isinstance(found[0], BaseException):
        raise found[0]
    done: Run = found[0]
    return done


@pytest.fixture
def tuned(tmp_path: Path) -> train.Train:
    """Training of the tiny model, with room for two side by side on two CPUs."""
    lines = [{"text": f"{word} {number}", "queue": queue} for number in range(20) for word, queue in
             (("water", "a"), ("card", "b"))]  # fmt: skip
    (tmp_path / "lines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = read.Jsonl(path=str(tmp_path / "lines.jsonl"), prompt="{text}", answer="{queue}")
    split = select.Split(rows=rows, shares=(0.5, 0.5, 0.0))
    return train.Train(
        model=Llm("tiny"), rows=split.train, held_out=split.dev, steps=6, eval_every=1, checkpoint_every=1,
        dtype="float32", resources=Resources(cpus=0.9),
    )  # fmt: skip
