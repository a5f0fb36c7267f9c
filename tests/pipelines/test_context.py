import fcntl
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from graftline.pipelines import context as module
from graftline.pipelines.artefacts import Identity
from graftline.pipelines.board import LocalBoard
from graftline.pipelines.budget import Budget, Purse
from graftline.pipelines.context import (
    COMPILED,
    OWN,
    SPINS,
    Calls,
    CountedEngine,
    WorkerContext,
    absolute,
    base_of,
    difference,
    set_threads,
)
from graftline.pipelines.store import Store
from graftline.pipelines.work import Work
from graftline.stages import Llm, Model, Resources, Rows, Source, Stage
from graftline.stages.artefact import Artefact
from graftline.stages.errors import BudgetSpent, InvalidField
from graftline.stages.lm.engine import Answer, Request
from graftline.stages.rows import derived_seed


class Numbers(Source):
    seed: int = 7


class Tuned(Stage):
    makes = "adapter"
    model: Model


class Merged(Stage):
    makes = "model"
    model: Model


class Swept(Stage):
    makes = "adapter"
    stage: Stage


class Asks(Stage):
    makes = "report"
    model: Model
    rows: Rows | None = None


class FakeEngine:
    """Notes how it was opened and asked."""

    reproducible, why, digest = False, "bf16", "d"
    opened: list["FakeEngine"] = []

    def __init__(self, llm, directory, adapters, threads):
        self.model, self.directory, self.adapters, self.threads, self.closed = (
            llm.name,
            directory,
            adapters,
            threads,
            False,
        )
        self.asked = []
        FakeEngine.opened.append(self)

    def generate(self, requests, on_answer=None):
        self.asked += requests
        return [Answer(request.id, "x", "stop", 10, 3) for request in requests]

    def choice_logprobs(self, prompts, choices, adapter=None):
        self.asked.append(adapter)
        return [[0.0]] * len(prompts)

    def count_tokens(self, conversations):
        return sum(7 + sum(len(turn["content"]) for turn in turns) for turns in conversations)

    def close(self):
        self.closed = True


@pytest.fixture
def engines(monkeypatch):
    """Engines opened in this test."""
    FakeEngine.opened = []
    monkeypatch.setattr(
        "graftline.stages.lm.open.open_engine",
        lambda llm, directory, adapters, threads=None, gate=None: FakeEngine(llm, directory, adapters, threads),
    )
    return FakeEngine.opened


@pytest.fixture
def order(tmp_path):
    """A work order of a stage; its inputs lie in folders named after their class."""

    def make(stage, *inputs, budget=None, hear=lambda told: None):
        store = Store(str(tmp_path / "store"))
        opened = {}
        for each in inputs:
            manifest = {"kind": each.kind, "digest": type(each).__name__ * 4, "files": {}}
            opened[each.key] = Artefact(manifest, store.filesystem, str(tmp_path / type(each).__name__))
        return Work(
            stage=stage, chain=(stage,), fingerprints={}, inputs=opened,
            identity=Identity(type(stage).__name__, "f" * 64),
            store=store, base=str(tmp_path), resources=Resources(cpus=2.0, threads=2),
            board=LocalBoard(Purse(budget or Budget()), hear, lambda key, stage, metric: None),
        )  # fmt: skip

    return make


@pytest.fixture(autouse=True)
def _threads():
    """Leaves torch's threads and the environment as they were."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    kept = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    yield
    if torch:
        torch.set_num_threads(before)
    for name, value in kept.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def test_the_engine_of_a_model(order, engines, tmp_path):
    llm = Llm("tiny")
    context = WorkerContext(order(Asks(model=llm), llm))
    with context.engine(llm) as engine:
        engine.generate([Request("1", ()), Request("2", (), adapter="other")])
        engine.choice_logprobs([()], [["a", "bcd"]])
    assert engines[0].directory == tmp_path / "Llm" / "model" and engines[0].adapters == {} and engines[0].threads == 2
    assert [each.adapter for each in engines[0].asked[:2]] == [None, "other"] and engines[0].closed
    scored = 7 + (1 + 1) + (3 + 1)  # the prompt once, and each choice with its end of turn
    assert context.calls == Calls("tiny", 3, 20, 6, scored, 0.0, False, "bf16")
    told = {"model": "tiny", "requests": 3, "tokens_in": 20, "tokens_out": 6, "tokens_scored": scored}
    assert context.calls.to_dict() == told and Calls().to_dict() == {}


def test_the_engine_of_an_adapter_is_its_bases(order, engines, tmp_path):
    llm = Llm("tiny")
    tuned = Tuned(model=llm)
    context = WorkerContext(order(Asks(model=tuned), tuned, llm))
    with context.engine(tuned, {"second": tuned}) as engine:
        engine.generate([Request("1", ()), Request("2", (), adapter="second")])
        engine.choice_logprobs([()], [["a"]])
    place = tmp_path / "Tuned" / "adapter"
    assert engines[0].directory == tmp_path / "Llm" / "model"
    assert engines[0].adapters == {OWN: place, "second": place} and engines[0].model == "tiny"
    assert [each.adapter for each in engines[0].asked[:2]] == [OWN, "second"] and engines[0].asked[2] == OWN


def test_the_engine_of_a_tuned_model_is_its_own(order, engines, tmp_path):
    merged = Merged(model=Tuned(model=Llm("tiny")))
    with WorkerContext(order(Asks(model=merged), merged)).engine(merged):
        assert engines[0].directory == tmp_path / "Merged" / "model" and engines[0].model == "tiny"


def test_which_model_it_was_made_from():
    llm = Llm("tiny")
    assert (
        base_of(llm)
        == base_of(Tuned(model=Merged(model=Tuned(model=llm))))
        == base_of(Swept(stage=Tuned(model=llm)))
        == llm
    )

    class Odd(Stage):
        makes = "adapter"

    with pytest.raises(InvalidField, match="does not say which model"):
        base_of(Odd())


def test_an_engine_is_opened_once_a_worker(order, engines):
    llm = Llm("tiny")
    context = WorkerContext(order(Asks(model=llm), llm), keep_engines=True)
    for _ in range(3):
        with context.engine(llm) as engine:
            engine.generate([Request("1", ())])
    assert len(engines) == 1 and not engines[0].closed and context.calls.requests == 3
    context.close()
    assert engines[0].closed


def test_a_spent_budget_stops_after_the_answers(order, engines):
    llm = Llm("tiny")
    context = WorkerContext(order(Asks(model=llm), llm, budget=Budget(tokens=20)))
    with context.engine(llm) as engine:
        engine.generate([Request("1", ())])
        with pytest.raises(BudgetSpent, match="20 tokens"):
            engine.generate([Request("1", ())])
        with context.paying_later() as pay:
            engine.generate([Request("1", ())])
        with pytest.raises(BudgetSpent):
            pay()
    assert context.work.board.purse.tokens == 39
    assert difference(context.calls, Calls(requests=1, tokens_in=10, tokens_out=3)).requests == 2
    assert difference(Calls(tokens_scored=9), Calls(tokens_scored=2)).tokens_scored == 7


def test_an_engine_is_what_the_protocol_says():
    from graftline.stages.lm.engine import Engine

    for name in (
        "generate",
        "choice_logprobs",
        "logprobs",
        "stream",
        "cancel",
        "load_adapter",
        "unload_adapter",
        "pause",
        "close",
    ):
        assert callable(getattr(CountedEngine, name)) and hasattr(Engine, name)


def test_seeds_depend_on_the_stage_the_row_and_the_attempt(order):
    context = WorkerContext(order(Numbers(seed=3)))
    assert context.seed("row", 2) == derived_seed(3, "row", 2) != context.seed("row", 1)
    assert WorkerContext(order(Asks(model=Llm("tiny")))).seed("row") == derived_seed(0, "row", 0)


def test_what_the_plan_pinned(order):
    context = WorkerContext(replace(order(Numbers()), pinned={"hub:some/model@main": "abc"}))
    assert context.pinned("hub:some/model@main") == "abc" and context.pinned("another") is None


def test_paths(order, tmp_path):
    assert WorkerContext(order(Numbers())).file("a/b") == str(tmp_path / "a" / "b")
    assert absolute("/x/../y", "/base") == "/y" and absolute("s3://b/x", "/base") == "s3://b/x"
    assert absolute("~/x", "/base") == str(Path.home() / "x")


def test_progress_is_not_told_too_often(order, monkeypatch):
    told = []
    context = WorkerContext(order(Numbers(), hear=told.append))
    clock = iter([0.0, 100.0, 100.1, 100.2, 100.4, 100.5])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    next(clock)
    for done in range(1, 6):
        context.progress(done, 5, loss=float("nan"))
    assert [each["done"] for each in told] == [1, 4, 5] and told[0]["numbers"] == {"loss": None}


def test_one_process_at_a_time_has_the_scratch_folder(order):
    context = WorkerContext(order(Numbers()))
    (context.scratch / "x").write_text("1")
    lock = context.scratch.with_name(f".{context.scratch.name}.lock")
    with open(lock, "w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        context.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    again = WorkerContext(order(Numbers()))
    assert (again.scratch / "x").read_text() == "1"
    again.close(done=True)
    assert not again.work.store.list("scratch/Numbers-ffffffffffffffff")


def test_threads_are_set_for_what_is_imported_and_what_will_be(monkeypatch):
    @dataclass
    class Torch:
        threads: int = 2

        def get_num_threads(self):
            return self.threads

        def set_num_threads(self, threads):
            self.threads = threads

    torch = Torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    set_threads(5)
    assert torch.threads == 5 and os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delitem(sys.modules, "torch")
    set_threads(3)
    assert os.environ["OMP_NUM_THREADS"] == "3"


KEPT = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.parametrize("wish", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_wait_briefly_unless_the_user_says_how(monkeypatch, wish):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wish.items():
        monkeypatch.setenv(name, value)
    set_threads(1)
    set_threads(1)
    wanted = wish or {"GOMP_SPINCOUNT": str(SPINS)}
    assert {name: os.environ[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ} == wanted


@pytest.mark.parametrize("wish", ["", "7"])
def test_few_compiled_products_are_kept_unless_the_user_says_how_many(monkeypatch, wish):
    monkeypatch.delenv(KEPT, raising=False)
    if wish:
        monkeypatch.setenv(KEPT, wish)
    set_threads(1)
    assert os.environ[KEPT] == (wish or str(COMPILED))


def test_the_log_keeps_each_steps_last_line(order):
    told = []
    context = WorkerContext(order(Numbers(), hear=told.append))
    assert context.logged() == []
    context.log(1, loss=1.0)
    context.log(2, loss=2.0)
    context.log(1, loss=0.5, rate=3)
    with open(context.scratch / "log.jsonl", "a") as stream:
        stream.write('{"step": 3, "lo')
    assert context.logged() == [{"step": 1, "loss": 0.5, "rate": 3}, {"step": 2, "loss": 2.0}]
    assert [each["kind"] for each in told] == ["log"] * 3
    context.close()


WHILE_IMPORTED = """
import sys, threading, time
from graftline.pipelines.context import set_threads
other = threading.Thread(target=lambda: __import__("torch"))
other.start()
while "torch" not in sys.modules:
    time.sleep(0)
set_threads(1)
print(sys.modules["torch"].get_num_threads())
other.join()
"""


@pytest.mark.real
def test_threads_are_set_while_another_thread_imports_torch():
    """Independent branches run in threads of one process, and one of them may be the first to need torch."""
    done = subprocess.run([sys.executable, "-c", WHILE_IMPORTED], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
