import json
from pathlib import Path

import pyarrow.fs as fs
import pytest

from graftline.pipelines import record as module
from graftline.pipelines.artefacts import Artefacts
from graftline.pipelines.pins import OutsidePins
from graftline.pipelines.planning import planned
from graftline.pipelines.record import Record
from graftline.pipelines.store import Store
from graftline.stages import Mapper, Source
from graftline.stages.errors import WorldError
from graftline.stages.expected import Usage


class Numbers(Source):
    """Rows."""


class Same(Mapper):
    """Changes nothing."""


@pytest.fixture(params=["local", "remote"])
def record(request, tmp_path):
    store = Store(str(tmp_path / "store"))
    if request.param == "remote":
        store = Store("bucket/store", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))
    plan = planned({"rows": Same(rows=Numbers())}, store, str(tmp_path), pins=OutsidePins(str(tmp_path)))
    return Record(store, plan, "mine", {"k": 3}, "/x/mine.py")


def saved(record):
    return record.store.read_json(f"runs/{record.id}/run.json")


def lines(record):
    return [json.loads(line) for line in record.store.read_bytes(f"runs/{record.id}/metrics.jsonl").splitlines()]


def test_a_run_begins_with_all_its_stages(record):
    found = saved(record)
    assert (found["state"], found["finished"], found["pipeline"]) == ("running", None, "mine")
    assert [(line["name"], line["status"]) for line in found["stages"]] == [("Numbers", "pending"), ("Same", "pending")]
    assert found["stages"][1]["inputs"] == [found["stages"][0]["key"]] and found["results"] == {
        "rows": found["stages"][1]["key"]
    }
    assert record.store.read_json("runs/latest.json")["id"] == record.id
    assert set(record.store.read_json(f"runs/{record.id}/pipeline.json")) == {
        "schema", "roots", "stages", "pipeline", "base", "file", "parameters"
    }  # fmt: skip


def test_what_stages_log_is_there_for_tensorboard(record):
    (numbers, _) = record.run["stages"]
    record.logged(numbers["key"], {"step": 1, "loss": 2.5})
    record.finish("done")
    assert [(line["stage"], line["loss"]) for line in lines(record)] == [("Numbers", 2.5)]
    (events,) = record.store.list(f"runs/{record.id}/tensorboard", deep=True)
    assert b"loss" in record.store.read_bytes(events)


def test_it_is_rewritten_as_it_advances(record, monkeypatch):
    (numbers, _) = record.run["stages"]
    record.update(numbers["key"], status="running")
    assert saved(record)["stages"][0]["status"] == "running"
    record.progressed(numbers["key"], 3, 9)
    assert "done" not in saved(record)["stages"][0], "how far it is, is written only now and then"
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    record.progressed(numbers["key"], 4, 9)
    assert saved(record)["stages"][0]["done"] == 4


def test_the_end(record):
    (numbers, same) = record.run["stages"]
    record.update(numbers["key"], status="ran", metrics={"fetch_seconds": 100.0}, calls={"requests": 3, "money": 0.5})
    record.update(same["key"], status="running")
    record.finish("failed", WorldError("down", where="Same", do="wait"))
    found = saved(record)
    assert found["state"] == "failed" and found["finished"] >= found["started"]
    assert found["error"] == {"type": "WorldError", "what": "down", "where": "Same", "do": "wait"}
    assert [line["status"] for line in found["stages"]] == ["ran", "pending"]
    assert found["calls"] == Usage(3, money=0.5).to_dict(), "of all that ran"
    assert found["fetch_seconds"] == 100.0 and found["seconds"] == 0.0, "downloads are left out"


def test_metrics_are_appended(record, monkeypatch):
    (numbers, _) = record.run["stages"]
    record.logged(numbers["key"], {"step": 1, "loss": 0.5})
    record.logged(numbers["key"], {"step": 2, "loss": 0.4})
    record.finish("done")
    assert [(line["stage"], line["key"], line["step"], line["loss"]) for line in lines(record)] == [
        ("Numbers", numbers["key"], 1, 0.5), ("Numbers", numbers["key"], 2, 0.4)
    ]  # fmt: skip


def test_tracebacks_are_kept(record):
    path = record.traceback(Numbers(), "Traceback …")
    assert path == record.store.path(f"runs/{record.id}/traceback-{Numbers().key[:12]}.txt")
    assert record.store.read_bytes(record.store.name(path)).decode() == "Traceback …" and Path(path).suffix == ".txt"
    assert list(Artefacts(record.store).listed()) == []
