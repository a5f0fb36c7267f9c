"""What a worker adds to the loop; whole runs are in test_train.py."""

import json

import pyarrow as pa
import pytest

from graftline.stages import Llm, Source, train
from graftline.stages.errors import StoreFailed
from graftline.stages.train import worker
from graftline.stages.train.collectives import Alone
from graftline.stages.train.worker import Job, work


class Given(Source):
    """Rows that a test has."""


@pytest.fixture
def job(tiny_directory, opened):
    import peft  # noqa: F401  seconds, which are no test's own

    def make(**fields):
        settings = {"batch_size": 4, "steps": 2, "adapter": train.Lora(rank=2), **fields}
        stage = train.Train(model=Llm("tiny"), rows=Given(), **settings)
        return Job(stage, opened(tiny_directory), base="tiny", dtype="float32", threads=1)

    return make


@pytest.fixture
def table():
    """Ten prepared rows of the `tiny` model's tokens."""
    ids = [[5 + (row * 7 + place) % 200 for place in range(6 + row)] for row in range(10)]
    return pa.table(
        {
            "id": [f"r{row}" for row in range(10)],
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "trained": pa.array([[False] * 3 + [True] * (3 + row) for row in range(10)], pa.list_(pa.bool_())),
        }
    )


def test_only_the_first_worker_exports(job, table, recorder, tmp_path):
    class Second(Alone):
        rank = 1

    assert work(job(), table, None, recorder(), Second(), tmp_path / "second") == {}
    assert not (tmp_path / "second").exists()


def test_without_held_out_rows_the_export_is_measured_on_training_rows(job, table, recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "PROBE_ROWS", 3)
    metrics = work(job(), table, None, recorder(), Alone(), tmp_path)
    assert "eval_loss" not in metrics
    again = work(job(), table, table.slice(0, 3), recorder("again"), Alone(), tmp_path)
    assert again["eval_loss"] == pytest.approx(metrics["loss_as_trained"], rel=1e-6)
    assert metrics["loss_as_served"] == pytest.approx(metrics["loss_as_trained"], abs=1e-6)


def test_an_export_that_does_not_compute_the_same_is_seen(job, table, recorder, tmp_path):
    class Lossy(train.Lora):
        def attach(self, model, factors, seed):
            made = super().attach(model, factors, seed)
            export = made.export
            made.export = lambda out, masters, *rest: export(
                out, {name: each * 0 for name, each in masters.items()}, *rest
            )
            return made

    fast = train.AdamW(lr=0.1, warmup=0.0)
    metrics = work(job(adapter=Lossy(rank=2), optimizer=fast), table, table, recorder(), Alone(), tmp_path)
    assert metrics["loss_as_served"] == pytest.approx(metrics["eval_loss_before"], abs=1e-5)
    assert abs(metrics["loss_as_served"] - metrics["loss_as_trained"]) > 1e-3


@pytest.mark.parametrize(("adapter", "held"), [(train.Lora(rank=2), "nf4"), (train.Pissa(rank=2), "nf4+2")])
def test_a_quantised_base_is_measured_as_trained_as_served_and_on_the_float_base(
    job, table, recorder, tmp_path, adapter, held
):
    fast = train.AdamW(lr=0.05, warmup=0.0)
    made = job(base=train.Nf4(), adapter=adapter, optimizer=fast)
    metrics = work(made, table, table, recorder(), Alone(), tmp_path)
    card = json.loads((tmp_path / "adapter" / "graftline.json").read_text())
    assert (card["base"]["held"], card["held_in_training"]) == (held, "nf4")
    assert metrics["loss_as_trained"] < metrics["eval_loss_before"] - 0.1
    assert metrics["loss_as_served"] == pytest.approx(metrics["loss_as_trained"], abs=1e-6)
    assert abs(metrics["loss_on_float_base"] - metrics["loss_as_served"]) > 1e-4


def test_an_evaluation_an_epoch_unless_told(job, table, recorder, tmp_path):
    for name, fields, steps in (
        ("epoch", {"steps": None, "epochs": 2.0}, [0, 3, 5]),
        ("end", {"eval_every": 0}, [0, 2]),
        ("each", {"eval_every": 1}, [0, 1, 2]),
    ):
        reporter = recorder(name)
        work(job(**fields), table, table, reporter, Alone(), tmp_path / name)
        assert [step for step, numbers in reporter.logged if "eval_loss" in numbers] == steps


def test_a_batch_holds_no_row_twice(job, table, recorder, tmp_path):
    metrics = work(job(batch_size=100), table, None, recorder(), Alone(), tmp_path)
    assert metrics["steps"] == 2 and metrics["tokens"] == 2 * sum(range(6, 16))


def test_an_export_that_cannot_be_written_is_the_worlds_fault(job, table, recorder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailed, match=r"file/adapter: cannot write"):
        work(job(), table, None, recorder(), Alone(), tmp_path / "file")
