"""A sweep's trials in the report: all of them, the best one marked, bars in proportion, plots and curves."""

import re

import pyarrow.fs as fs
import pytest

from graftline.pipelines.report_sweeps import LEAST_WIDTH, sweeps
from graftline.stages.artefact import Artefact
from graftline.stages.sweep.outcome import Outcome, write_table


def trial(rank, metric, status="full", **values):
    return {"values": {"adapter.rank": rank, **values}, "status": status, "metric": metric, "seconds": 2.0, "why": ""}


def stage(trials, best, name="Sweep"):
    return {"name": name, "metrics": {"trials": trials, "best": best, "picked_by": "eval_loss"}}


def test_every_trial_with_its_values_and_the_best_marked():
    trials = [trial(4, 0.9), trial(8, 0.5, seed=1), trial(16, None, "failed"), trial(32, float("nan"))]
    (found,) = sweeps([{"name": "Train", "metrics": {"loss": 1.0}}, stage(trials, {"adapter.rank": 8, "seed": 1})])
    assert (
        found["name"] == "Sweep" and found["picked_by"] == "eval_loss" and found["fields"] == ["adapter.rank", "seed"]
    )
    assert [each["values"] for each in found["trials"]] == [[8, 1], [4, None], [16, None], [32, None]]
    assert [each["is_best"] for each in found["trials"]] == [True, False, False, False]
    assert [each["width"] for each in found["trials"]] == pytest.approx([LEAST_WIDTH, 100.0, 0.0, 0.0])
    assert found["best"] == "adapter.rank = 8, seed = 1" and found["counts"] == {"full": 3, "stopped": 0, "failed": 1}


def test_one_trial_fills_its_bar():
    (found,) = sweeps([stage([trial(4, 0.9)], {"adapter.rank": 4})])
    assert found["trials"][0]["width"] == 100.0


def test_no_sweep_is_no_section():
    assert sweeps([{"name": "Train", "metrics": {}}, {"name": "Read"}]) == []


def test_the_best_stands_first_then_the_nearest_then_what_was_stopped_or_failed():
    trials = [trial(1, None, "failed"), trial(2, 0.9), trial(4, 0.1, "stopped"), trial(8, 0.5), trial(16, 0.6)]
    (found,) = sweeps([stage(trials, {"adapter.rank": 8})])
    assert [each["values"][0] for each in found["trials"]] == [8, 16, 2, 4, 1]
    assert found["kinds"] == ["best", "full", "stopped", "failed"]


def test_a_plot_for_each_field_with_every_trial():
    trials = [
        {**trial(rank, 1 / rank), "values": {"adapter.rank": rank, "optimizer": kind, "lr": rank * 1e-5}}
        for rank in (1, 4, 16, 64) for kind in ("AdamW()", "Lion()")
    ]  # fmt: skip
    (found,) = sweeps([stage(trials, trials[-1]["values"])])
    assert [plot["field"] for plot in found["plots"]] == ["adapter.rank", "optimizer", "lr"]
    for plot in found["plots"]:
        assert plot["svg"].count("<circle") == 8 and plot["svg"].count('class="trial best"') == 1
    assert ">Lion()<" in found["plots"][1]["svg"]
    places = [float(x) for x in re.findall(r'class="trial full" cx="([\d.]+)"', found["plots"][0]["svg"])]
    steps = [one - other for one, other in zip(sorted(set(places))[1:], sorted(set(places)), strict=False)]
    assert max(steps) - min(steps) < 0.3, "ranks from 1 to 64 stand apart by doublings"


def test_curves_of_every_trial_come_from_the_sweeps_table(tmp_path):
    """Those that were stopped, too: they have no artefact."""
    found = [
        Outcome({"adapter.rank": 4}, "stopped", 0.9, curve=((1, 2.0), (2, 0.9))),
        Outcome({"adapter.rank": 8}, "full", 0.5, curve=((1, 1.5), (2, 0.8), (3, 0.5))),
    ]
    write_table(found, tmp_path / "trials.parquet")
    artefact = Artefact({"files": {"trials.parquet": {}}}, fs.LocalFileSystem(), str(tmp_path))
    line = {**stage([trial(4, 0.9, "stopped"), trial(8, 0.5)], {"adapter.rank": 8}), "key": "k"}
    (shown,) = sweeps([line], {"k": artefact})
    assert re.findall(r'class="curve (\w+)"', shown["curves"]) == ["stopped", "best"]
    assert "adapter.rank = 4: eval loss 0.9 (stopped)" in shown["curves"]
    (bare,) = sweeps([line], {"k": None})
    assert bare["curves"] == ""


def test_a_table_of_another_age_has_no_curves(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"metric": [0.5]}), tmp_path / "trials.parquet")
    artefact = Artefact({"files": {"trials.parquet": {}}}, fs.LocalFileSystem(), str(tmp_path))
    (shown,) = sweeps([{**stage([trial(4, 0.5)], {"adapter.rank": 4}), "key": "k"}], {"k": artefact})
    assert shown["curves"] == "" and len(shown["plots"]) == 1
