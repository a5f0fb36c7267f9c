"""Synchronous halving: the table of trials depends on what they measure at the rungs, and on nothing else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from graftline.pipelines import run
from graftline.stages import Llm, read, select, sweep, train
from graftline.stages.artefact import Artefact
from graftline.stages.errors import InvalidField
from graftline.stages.stage import Resources


@pytest.mark.parametrize(
    ("grace", "reduction", "first"), [(2, 4.0, [2, 8, 32]), (1, 1.5, [1, 2, 3, 5]), (3, 1.1, [3, 4, 5, 6])]
)
def test_rungs_lie_at_powers_of_the_reduction(grace: int, reduction: float, first: list[int]) -> None:
    rungs = sweep.Halving(grace=grace, reduction=reduction).rungs()
    found = list(itertools.islice(rungs, len(first)))
    assert found == first or (reduction < 1.5 and found == sorted(set(found)))


def test_the_best_share_goes_on_and_ties_go_to_the_first() -> None:
    halving = sweep.Halving(grace=1, reduction=2.0)
    assert halving.go_on([0.4, 0.1, 0.3, 0.2]) == [1, 3]
    assert halving.go_on([0.1, 0.1, 0.1, 0.1, 0.1]) == [0, 1]
    assert sweep.Halving(grace=1, reduction=4.0).go_on([0.3, 0.2, 0.1]) == [2], "at least one"


def test_what_failed_or_is_no_number_does_not_go_on() -> None:
    halving = sweep.Halving(grace=1, reduction=2.0)
    assert halving.go_on([None, 0.4, None, 0.2]) == [1, 3]
    assert halving.go_on([None, None, None, 0.2]) == [3], "nor is its place filled"
    assert halving.go_on([None, None]) == []


@pytest.mark.parametrize("fields", [{"grace": 0}, {"grace": 1, "reduction": 1.0}, {}])
def test_what_would_end_nothing_or_everything_is_refused(fields: Any) -> None:
    with pytest.raises(InvalidField, match="Halving"):
        sweep.Halving(**fields)


def test_it_is_reproducible_and_ranks_no_trials_that_are_not_known_yet(pipe: Any) -> None:
    over, halving = {"knob.rank": sweep.grid(4, 8)}, sweep.Halving(grace=2)
    found = sweep.Sweep(stage=pipe.tuned, over=over, scheduler=halving)
    assert found.not_reproducible() == "" and found != sweep.Sweep(stage=pipe.tuned, over=over)
    with pytest.raises(InvalidField, match=r"Sweep\.scheduler: Halving ranks trials that are known before"):
        sweep.Sweep(stage=pipe.tuned, over=over, scheduler=halving, search="optuna", trials=2)


@pytest.fixture
def sweeping(tmp_path: Path, ray_cluster: Any) -> Callable[..., Artefact]:
    """Sweeps the learning rate of the tiny model, with room for two side by side on two CPUs."""
    lines = [{"text": f"{word} {number}", "queue": queue} for number in range(20) for word, queue in
             (("water", "a"), ("card", "b"))]  # fmt: skip
    (tmp_path / "lines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    split = select.Split(
        rows=read.Jsonl(path=str(tmp_path / "lines.jsonl"), prompt="{text}", answer="{queue}"), shares=(0.5, 0.5, 0.0)
    )
    tuned = train.Train(
        model=Llm("tiny"), rows=split.train, held_out=split.dev, steps=6, eval_every=1, checkpoint_every=1,
        dtype="float32", resources=Resources(cpus=0.9),
    )  # fmt: skip

    def go(store: str, rates: Sequence[float], **fields: Any) -> Artefact:
        best = sweep.Sweep(stage=tuned, over={"optimizer.lr": sweep.grid(*rates)}, **fields)
        return run(best, str(tmp_path / store), base=tmp_path, name="p")["result"]

    return go


def trials_of(artefact: Artefact) -> list[dict[str, Any]]:
    """The table, timings left out."""
    return [{**trial, "seconds": 0} for trial in artefact.metrics["trials"]]


@pytest.mark.slow
def test_a_trial_that_waited_is_the_trial_that_never_did(sweeping: Any, tmp_path: Path) -> None:
    made = sweeping("halved", [1e-6, 0.02, 1e30], scheduler=sweep.Halving(grace=2, reduction=2.0))
    bad, good, broken = made.metrics["trials"]
    assert (bad["status"], bad["why"]) == ("stopped", "it was ended at step 2") and not bad["fingerprint"]
    assert good["status"] == "full" and made.metrics["best"] == {"optimizer.lr": 0.02}
    assert broken["status"] in ("failed", "stopped") and not broken["fingerprint"]
    assert made.manifest["reproducible"]
    assert len(list(tmp_path.glob("halved/artefacts/Train-*/*/artefact.json"))) == 1, "the others commit nothing"
    assert made.digest == sweeping("straight", [0.02]).digest


@pytest.mark.slow
def test_the_same_table_one_at_a_time_or_side_by_side(sweeping: Any) -> None:
    rates, halving = [0.02, 1e30, 1e-6, 0.005], sweep.Halving(grace=1, reduction=2.0)
    alone, beside = (sweeping(f"{most}", rates, scheduler=halving, at_once=most) for most in (1, 2))
    assert trials_of(alone) == trials_of(beside) and alone.digest == beside.digest
    good, broken, bad, fair = trials_of(alone)
    assert good["status"] == "full" and broken["status"] in ("failed", "stopped")
    assert bad["why"] == "it was ended at step 1" and fair["why"] == "it was ended at step 2"
