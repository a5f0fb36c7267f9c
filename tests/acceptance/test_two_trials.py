"""Two trials of a sweep on two CPUs: side by side, ended early, and never hanging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graftline.pipelines import Run, run
from graftline.stages import sweep, train

from ..stages.sweep.conftest import SECONDS, within


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
