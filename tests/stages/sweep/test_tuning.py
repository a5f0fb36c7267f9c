"""Sweeps on Ray: side by side within two CPUs, ended early by ASHA, searched by Optuna; none of them may hang."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftline.pipelines import Run, run
from graftline.stages import Llm, read, select, sweep, train
from graftline.stages.errors import CannotPlace, InvalidField
from graftline.stages.stage import Resources
from graftline.stages.sweep.tuning import room

SECONDS = 120


def within(seconds: float, go: Callable[[], Run]) -> Run:
    """What a function answers; it fails where that takes longer."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(go())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"it still runs after {seconds} s"
    if isinstance(found[0], BaseException):
        raise found[0]
    done: Run = found[0]
    return done


@pytest.fixture
def tuned(tmp_path: Path) -> train.Train:
    """Training of the tiny model, with room for two side by side on two CPUs."""
    lines = [{"text": f"{word} {number}", "queue": queue} for number in range(20) for word, queue in
             (("water", "a"), ("card", "b"))]  # fmt: skip
    (tmp_path / "lines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = read.Jsonl(path=str(tmp_path / "lines.jsonl"), prompt="{text}", answer="{queue}")
    split = select.Split(rows=rows, shares=(0.5, 0.5, 0.0))
    return train.Train(
        model=Llm("tiny"), rows=split.train, held_out=split.dev, steps=6, eval_every=1, checkpoint_every=1,
        dtype="float32", resources=Resources(cpus=0.9),
    )  # fmt: skip


@pytest.mark.real
def test_trials_side_by_side_and_ended_early(tuned: train.Train, tmp_path: Path, ray_cluster: Any) -> None:
    store = str(tmp_path / "store")

    def go(stage: Any) -> Run:
        return within(SECONDS, lambda: run(stage, store, base=tmp_path, name="p"))

    grid = sweep.Sweep(stage=tuned, over={"optimizer.lr": sweep.grid(0.01, 0.02)})
    first = go(grid)
    lines = [line for line in first.record["stages"] if line["asked_by"]]
    assert [line["status"] for line in lines] == ["ran", "ran"]
    assert first["result"].metrics["best"] == {"optimizer.lr": 0.02} and first["result"].manifest["reproducible"]

    asha = sweep.Sweep(
        stage=tuned, over={"optimizer.lr": sweep.grid(0.02, 1e-6, 1e30)}, scheduler=sweep.Asha(grace=2, reduction=2.0),
        at_once=1,
    )  # fmt: skip
    second = go(asha)
    artefact = second["result"]
    good, bad, broken = artefact.metrics["trials"]
    assert good["status"] == "full" and good["fingerprint"], "it was made by the grid, and the others are held to it"
    assert bad["status"] == "stopped" and bad["why"].endswith("ended at step 2") and bad["metric"] > good["metric"]
    assert broken["status"] in ("failed", "stopped") and not broken["fingerprint"]
    assert artefact.digest == first["result"].digest and artefact.metrics["best"] == {"optimizer.lr": 0.02}
    assert not artefact.manifest["reproducible"] and "Asha" in artefact.manifest["why"]
    kept = [path for path in tmp_path.glob("store/scratch/Train-*/checkpoints/step-*") if path.name == "step-000000001"]
    assert kept, "a stopped trial keeps its checkpoints"
    made = list(tmp_path.glob("store/artefacts/Train-*/*/artefact.json"))
    assert len(made) == 2, "and commits no artefact"

    # Trials that were ended must have left nothing reserved: the next experiment needs both CPUs at once.
    side_by_side = sweep.Sweep(
        stage=tuned.replace("steps", 60), over={"optimizer.lr": sweep.grid(0.01, 0.02)}, scheduler=sweep.Asha(grace=99),
        at_once=2,
    )  # fmt: skip
    third = go(side_by_side)
    assert [trial["status"] for trial in third["result"].metrics["trials"]] == ["full", "full"]
    one, other = [span(Path(line["path"])) for line in third.record["stages"] if line["asked_by"]]
    assert max(one[0], other[0]) < min(one[1], other[1]), f"they took turns: {one}, {other}"


def span(artefact: Path) -> tuple[float, float]:
    """When an artefact's making began and ended."""
    manifest = artefact / "artefact.json"
    end = manifest.stat().st_mtime
    return end - json.loads(manifest.read_text())["seconds"], end


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
