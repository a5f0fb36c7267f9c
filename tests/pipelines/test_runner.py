"""Stages that have other stages made: shared, counted, without standing in each other's way."""

import threading
from collections import Counter

import pytest

from graftline.pipelines import run, runner
from graftline.pipelines.placing import Node
from graftline.stages import Made, Resources, Rows, Scorer, Source, Stage
from graftline.stages.errors import CannotPlace, GraftlineError, RunError, Stopped

MADE: Counter[str] = Counter()


class Numbers(Source):
    def make_rows(self, context):
        MADE[self.name] += 1
        yield from (Made({"answer": str(number)}) for number in range(4))


class Size(Scorer):
    adds = {"size": "int64"}
    factor: int = 1

    def score_rows(self, table, context):
        MADE[f"Size {self.factor}"] += 1
        return {"size": [self.factor] * table.num_rows}


class Trial(Stage):
    makes = "report"
    rows: Rows
    bad: bool = False

    def footprint(self):
        return (self.resources or Resources(cpus=1.0),)

    def make(self, context, out, rows):
        MADE[f"Trial {self.rows.factor}"] += 1
        if self.bad:
            raise ValueError("diverged")
        return {"size": sum(rows.rows(["size"])["size"].to_pylist())}


class Sweep(Stage):
    """Has trials made, all at once."""

    makes = "report"
    trial: Trial
    factors: tuple[int, ...] = (1, 2, 3)

    def make(self, context, out, trial):
        found, errors = {}, []

        def one(factor):
            try:
                found[str(factor)] = context.run(self.trial.replace("rows.factor", factor)).metrics["size"]
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=one, args=(factor,)) for factor in self.factors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return found


@pytest.fixture(autouse=True)
def _forget():
    MADE.clear()


@pytest.fixture
def go(tmp_path):
    return lambda pipeline, **more: run(pipeline, str(tmp_path / "store"), base=tmp_path, address="here", **more)


def trial(factor=1, **more):
    return Trial(rows=Size(rows=Numbers(), factor=factor), **more)


def test_what_trials_share_is_made_once(go):
    made = go(Sweep(trial=trial()))
    assert made["result"].metrics == {"1": 4, "2": 8, "3": 12}
    assert {name: count for name, count in MADE.items()} == {
        "Numbers": 1, **{f"Size {number}": 1 for number in (1, 2, 3)}, **{f"Trial {number}": 1 for number in (1, 2, 3)}
    }  # fmt: skip
    lines = {(line["name"], line["why"]) for line in made.record["stages"] if line["status"] == "ran"}
    assert ("Trial", "asked for by Sweep") in lines and made.ran == 1 + 2 * 3 + 1
    asked = {line["name"]: bool(line["asked_by"]) for line in made.record["stages"]}
    assert asked["Sweep"] is False and made.record["stages"][-1]["asked_by"]
    again = go(Sweep(trial=trial(), factors=(3, 2, 4)))
    assert MADE["Trial 3"] == 1 and MADE["Trial 4"] == 1 and MADE["Numbers"] == 1
    assert again["result"].metrics["4"] == 16


def test_one_that_asks_twice_at_once_is_served_once(go):
    go(Sweep(trial=trial(), factors=(5, 5, 5, 5)))
    assert MADE["Trial 5"] == 1


def test_a_trial_may_need_all_that_its_sweep_holds(go, monkeypatch):
    monkeypatch.setattr(runner.Here, "nodes", lambda self: [Node(1, driver=True)])
    assert go(Sweep(trial=trial(), factors=(1, 2)))["result"].metrics == {"1": 4, "2": 8}


def test_a_trials_failure_is_the_sweeps(go):
    with pytest.raises(RunError, match="ValueError: diverged") as caught:
        go(Sweep(trial=trial(bad=True)))
    assert caught.value.where == "Trial"


def test_what_does_not_fit_the_cluster_is_refused_before_it_starts(go, monkeypatch):
    monkeypatch.setattr("graftline.pipelines.running.this_machine", lambda: Node(64, driver=True))
    monkeypatch.setattr(runner.Here, "nodes", lambda self: [Node(2, driver=True)])
    with pytest.raises(CannotPlace, match="needs 3 cpus at once"):
        go({"a": trial(resources=Resources(cpus=3.0)), "b": Size(rows=Numbers())})
    assert not MADE, "nothing was started"


def test_what_will_be_asked_for_must_fit_too(go, monkeypatch):
    class Foreseeing(Sweep):
        def foreseen(self):
            return {"first": self.trial.replace("resources", Resources(cpus=3.0))}

    monkeypatch.setattr("graftline.pipelines.running.this_machine", lambda: Node(64, driver=True))
    monkeypatch.setattr(runner.Here, "nodes", lambda self: [Node(2, driver=True)])
    with pytest.raises(CannotPlace, match="Trial: needs 3 cpus at once"):
        go(Foreseeing(trial=trial()))
    assert not MADE


class Long(Stage):
    """Logs a loss after each of ten steps, and keeps a checkpoint."""

    makes = "report"
    name_of_it: str = "x"

    def make(self, context, out):
        MADE["Long"] += 1
        checkpoint = context.scratch / "step"
        first = int(checkpoint.read_text()) if checkpoint.exists() else 0
        for step in range(first + 1, 11):
            checkpoint.write_text(str(step))
            context.log(step, other=0.0)
            context.log(step, loss=1 / step)
        return {"loss": 0.1, "first": first}


class Watching(Stage):
    """Ends another stage at a step, then has all of it made where it is told to."""

    makes = "report"
    at: int
    then: bool = False

    def make(self, context, out):
        seen = []

        def goes_on(step, value):
            seen.append(step)
            return step < self.at

        try:
            made = context.watch(Long(), "loss", goes_on)
            return {"first": made.metrics["first"], "seen": seen}
        except Stopped as error:
            more = {"first": context.run(Long()).metrics["first"]} if self.then else {}
            return {"why": str(error), "seen": seen, **more}


def test_a_watched_stage_is_ended_at_what_it_logged(go, tmp_path):
    run = go(Watching(at=3))
    assert run["result"].metrics == {"why": run["result"].metrics["why"], "seen": [1, 2, 3]}
    assert "ended at step 3" in run["result"].metrics["why"]
    (line,) = [line for line in run.record["stages"] if line["name"] == "Long"]
    assert line["status"] == "stopped" and line["path"] == "" and run.state == "done"
    assert [path.read_text() for path in tmp_path.glob("store/scratch/Long*/step")] == ["3"], "checkpoints are kept"
    again = go(Watching(at=5))
    assert again["result"].metrics["seen"] == [1, 2, 3, 4, 5], "what it logged before it was ended is asked about first"
    back = go(Watching(at=2))
    assert back["result"].metrics["seen"] == [1, 2] and "ended at step 2" in back["result"].metrics["why"]
    whole = go(Watching(at=99))
    assert whole["result"].metrics == {"first": 6, "seen": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}, "it goes on where it was"


def test_a_stage_that_was_ended_may_be_had_whole_in_the_same_run(go):
    assert go(Watching(at=2, then=True))["result"].metrics["first"] == 2 and MADE["Long"] == 2


def test_stages_wait_for_room(go, monkeypatch):
    monkeypatch.setattr(runner.Here, "nodes", lambda self: [Node(1, driver=True)])
    running, most = [], []

    def make_rows(self, context):
        running.append(1)
        most.append(len(running))
        threading.Event().wait(0.05)
        running.pop()
        yield Made({"answer": self.label})

    monkeypatch.setattr(Numbers, "make_rows", make_rows)

    class Other(Numbers):
        """Another fingerprint."""

    go({"a": Numbers(), "b": Other()})
    assert most == [1, 1]


class Leaves(Source):
    def make_rows(self, context):
        yield Made({"answer": "0"})
        raise SystemExit(3)


def test_a_stage_that_leaves_the_process_ends_the_run(tmp_path):
    """In a thread of this process nobody else would see it: the run would wait for ever."""
    with pytest.raises(GraftlineError, match="SystemExit"):
        run(Leaves(), str(tmp_path / "store"), base=tmp_path, name="p", address="here")
