"""Sweeps on Ray: trials of two workers, searched by Optuna; none of them may hang. Two trials side by side are in
tests/acceptance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graftline.pipelines import Run, run
from graftline.stages import sweep, train
from graftline.stages.errors import CannotPlace, InvalidField
from graftline.stages.stage import Resources
from graftline.stages.sweep.tuning import room

from .conftest import SECONDS, within


@pytest.mark.slow
def test_trials_of_two_workers_each_have_room(tuned: train.Train, tmp_path: Path, ray_cluster: Any) -> None:
    """A trial that held a CPU itself, beside its two workers' own, would wait for ever on two CPUs."""
    best = sweep.Sweep(stage=tuned.replace("workers", 2), over={"optimizer.lr": sweep.grid(0.01, 0.02)})
    done = within(SECONDS, lambda: run(best, str(tmp_path / "store"), base=tmp_path, name="p"))
    assert [trial["status"] for trial in done["result"].metrics["trials"]] == ["full", "full"]


@pytest.mark.slow
def test_optuna_searches_through_ray_tune(tuned: train.Train, tmp_path: Path, ray_cluster: Any) -> None:
    def go(store: str) -> Run:
        best = sweep.Sweep(
            stage=tuned.replace("resources", None),  # each trial takes both CPUs: its proxy must not hold any
            over={"optimizer.lr": sweep.log_uniform(1e-6, 1e-1), "adapter": sweep.choice(train.Lora(rank=2),
                  train.Lora(rank=4))},
            search="optuna", trials=5, seed=3,
        )  # fmt: skip
        return within(SECONDS, lambda: run(best, str(tmp_path / store), base=tmp_path, name="p"))

    one, other = go("one")["result"], go("other")["result"]
    tried = [trial["values"]["optimizer.lr"] for trial in one.metrics["trials"]]
    assert len(set(tried)) == 5 and all(1e-6 <= lr <= 1e-1 for lr in tried)
    assert {trial["values"]["adapter"] for trial in one.metrics["trials"]} <= {"Lora(rank=2)", "Lora(rank=4)"}
    assert [trial["values"] for trial in other.metrics["trials"]] == [
        trial["values"] for trial in one.metrics["trials"]
    ]
    best = min(one.metrics["trials"], key=lambda trial: trial["metric"])
    assert one.metrics["best"] == best["values"] and one.digest == other.digest


def test_tune_needs_ray(pipe: Any, go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(CannotPlace, match="there is no Ray here"):
        go(sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(4, 8)}, search="optuna", trials=2))


def test_how_many_trials_there_is_room_for(tuned: train.Train) -> None:
    def nodes(*cpus: float) -> list[dict[str, Any]]:
        return [{"Resources": {"CPU": each, "memory": 8e9}} for each in cpus]

    assert room(tuned, nodes(2)) == 2 and room(tuned, nodes(4, 2)) == 6 and room(tuned, nodes(0.5)) == 1
    assert room(tuned.replace("resources", None), nodes(8, 8)) == 2
    assert room(tuned.replace("resources", Resources(gpus=1.0)), nodes(8)) == 1
    assert room(tuned.replace("resources", Resources(cpus=1.0, memory=4 * 10**9)), nodes(8)) == 2


@pytest.mark.slow
def test_an_error_that_is_no_trials_own_ends_the_experiment(
    tuned: train.Train, tmp_path: Path, ray_cluster: Any
) -> None:
    best = sweep.Sweep(
        stage=tuned, over={"optimizer.lr": sweep.uniform(0.01, 0.02)}, search="optuna", trials=50, metric="accuracy"
    )
    with pytest.raises(InvalidField, match=r"Sweep\.metric: the trials have no 'accuracy'"):
        within(SECONDS, lambda: run(best, str(tmp_path / "store"), base=tmp_path, name="p"))
