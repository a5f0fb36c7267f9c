"""Which trial is best: only a full one with a finite metric; ties go to the smaller fingerprint."""

import math

import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from graftline.stages.artefact import Artefact
from graftline.stages.errors import InvalidField, RunError
from graftline.stages.sweep.outcome import Outcome, pick, read, write_table


def trial(value, fingerprint="f", status="full", rank=1, why=""):
    manifest = {"fingerprint": fingerprint, "seconds": 2.0, "metrics": {"steps": 7}}
    made = Artefact(manifest, fs.LocalFileSystem(), "") if status == "full" else None
    return Outcome({"adapter.rank": rank}, status, value, made, why)


def test_the_best_of_either_mode():
    trials = [trial(0.5, rank=1), trial(0.2, rank=2), trial(0.9, rank=3)]
    assert pick(trials, "loss", "min", "Sweep") is trials[1] and pick(trials, "share", "max", "Sweep") is trials[2]


def test_a_tie_goes_to_the_smaller_fingerprint():
    trials = [trial(0.5, "bbb"), trial(0.5, "aaa"), trial(0.6, "000")]
    assert pick(trials, "loss", "min", "Sweep") is trials[1]


def test_what_has_no_number_or_did_not_end_never_wins():
    trials = [trial(None), trial(0.1, status="stopped"), trial(None, status="failed", why="NaN"), trial(0.7)]
    assert pick(trials, "loss", "min", "Sweep") is trials[3]
    with pytest.raises(RunError, match="none of 3 trials has a loss: NaN"):
        pick(trials[:3], "loss", "min", "Sweep")


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "text", True])
def test_a_metric_that_is_no_finite_number_is_none(value):
    assert read({"loss": value}, "loss", "Sweep.metric") is None
    assert read({"loss": 2}, "loss", "Sweep.metric") == 2.0


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(InvalidField, match=r"no 'los'.*Pick by one of loss, steps"):
        read({"loss": 1.0, "digest": "x", "steps": 3}, "los", "Sweep.metric")


def test_the_table_has_a_line_a_trial_and_a_column_a_field(tmp_path):
    write_table([trial(0.5, rank=4), trial(None, status="failed", rank=8, why="it broke")], tmp_path / "trials.parquet")
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["adapter.rank"] for row in rows] == [4, 8] and [row["metric"] for row in rows] == [0.5, None]
    assert [row["status"] for row in rows] == ["full", "failed"] and rows[1]["why"] == "it broke"
    assert [row["curve"] for row in rows] == [[], []]


def test_the_table_keeps_how_each_trial_came_to_its_number(tmp_path):
    stopped = Outcome({"adapter.rank": 1}, "stopped", 3.0, curve=((2, 5.0), (4, 3.0)))
    write_table([stopped], tmp_path / "trials.parquet")
    (row,) = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert (row["curve_steps"], row["curve"]) == ([2, 4], [5.0, 3.0])
