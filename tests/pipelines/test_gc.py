import os
from pathlib import Path

import pytest

from graftline.pipelines import run
from graftline.pipelines.gc import collect
from graftline.pipelines.store import Store
from graftline.stages import Made, Scorer, Source
from graftline.stages.errors import WorldError


class Numbers(Source):
    count: int = 3

    def make_rows(self, context):
        yield from (Made({"answer": str(number)}) for number in range(self.count))


class Judge(Scorer):
    """Calls a model, so that it has a ledger."""

    adds = {"size": "int64"}
    calls_model = True
    strict: bool = False

    def score_rows(self, table, context):
        if self.strict:
            raise WorldError("down")
        return {"size": [1] * table.num_rows}


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def go(store, tmp_path):
    return lambda pipeline: run(pipeline, store, base=tmp_path, address="here")


def names(store):
    return {name.partition("/")[0] + "/" + name.split("/")[1].partition("-")[0] for name in store.list("", deep=True)}


def test_what_runs_refer_to_stays(store, go):
    go(Judge(rows=Numbers()))
    assert collect(store, grace=0) == []
    assert go(Judge(rows=Numbers())).ran == 0


def test_what_no_run_refers_to_goes(store, go):
    first = go(Judge(rows=Numbers(count=2)))
    last = go(Judge(rows=Numbers(count=3)))
    store.delete(f"runs/{first.id}")
    (store.local_path("artefacts") / "Judge-0000000000000000" / "broken").mkdir(parents=True)
    would = collect(store, grace=0, dry_run=True)
    gone = collect(store, grace=0)
    assert gone == would and sum(each.bytes for each in gone) > 0
    folders = {
        each.name.rpartition("/")[0].rpartition("/")[2].partition("-")[0] for each in gone if "artefacts" in each.name
    }
    assert folders == {"Numbers", "Judge"}
    assert len(store.list("artefacts", deep=True)) == 2 * (1 + 1 + 3), "pointers go with what they point to"
    assert last["result"].count == 3 and go(Judge(rows=Numbers(count=3))).ran == 0
    assert go(Judge(rows=Numbers(count=2))).ran == 2
    assert collect(store, grace=0) == []


def test_old_runs_go_when_asked(store, go):
    made = [go(Judge(rows=Numbers(count=count))) for count in (1, 2, 3)]
    collect(store, keep_runs=1, grace=0)
    assert store.list("runs") == sorted([f"runs/{made[-1].id}/", "runs/latest.json"])
    assert go(Judge(rows=Numbers(count=3))).ran == 0 and go(Judge(rows=Numbers(count=1))).ran == 2


def test_what_a_failed_run_left_stays_until_it_is_forgotten(store, go):
    with pytest.raises(WorldError):
        go(Judge(rows=Numbers(), strict=True))
    (ledger,) = store.list("ledger")
    collect(store, keep_runs=0, grace=0)
    assert store.list("ledger") == [ledger], "an unfinished run may go on"
    for run_folder in store.list("runs"):
        store.delete(run_folder)
    collect(store, grace=0)
    assert store.list("ledger") == [] and store.list("artefacts", deep=True) == []


def test_what_changed_lately_is_left_alone(store, go, tmp_path):
    made = go(Judge(rows=Numbers()))
    store.delete(f"runs/{made.id}")
    assert collect(store) == []
    for path in Path(tmp_path / "store").rglob("*"):
        os.utime(path, (1, 1))
    assert collect(store) != []


def test_what_an_unfinished_run_makes_now_stays(store, go):
    with pytest.raises(WorldError):
        go(Judge(rows=Numbers(), strict=True))
    record = store.read_json(f"runs/{store.read_json('runs/latest.json')['id']}/run.json")
    (line,) = [each for each in record["stages"] if each["name"] == "Judge"]
    folder = store.local_path("artefacts") / f"Judge-{line['fingerprint'][:16]}"
    (folder / "making").mkdir(parents=True)
    (folder.with_name("Judge-0000000000000000") / "left").mkdir(parents=True)
    gone = {each.name for each in collect(store, grace=0)}
    assert "artefacts/Judge-0000000000000000/left" in gone and (folder / "making").is_dir()
