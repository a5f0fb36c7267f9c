"""A sweep's trials in the report: all of them, the best one marked, bars in proportion, nothing for no sweep."""

import pytest

from graftline.pipelines.report_sweeps import LEAST_WIDTH, sweeps


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
    assert [each["values"] for each in found["trials"]] == [[4, None], [8, 1], [16, None], [32, None]]
    assert [each["is_best"] for each in found["trials"]] == [False, True, False, False]
    assert [each["width"] for each in found["trials"]] == pytest.approx([100.0, LEAST_WIDTH, 0.0, 0.0])


def test_one_trial_fills_its_bar():
    (found,) = sweeps([stage([trial(4, 0.9)], {"adapter.rank": 4})])
    assert found["trials"][0]["width"] == 100.0


def test_no_sweep_is_no_section():
    assert sweeps([{"name": "Train", "metrics": {}}, {"name": "Read"}]) == []
