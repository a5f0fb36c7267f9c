"""The main job, whole: every family in one pipeline, on the tiny model here, on the real one where it is slow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..plan_and_record import far_off

FILE = "examples/main_job.py"
DRY = ("--set", "model=tiny", "--set", "engine=scripted", "--set", "embedder=tiny", "--set", "epochs=0.5")
STAGES = (
    "Jsonl", "Split", "SelfInstruct", "Difficulty", "NearDuplicates", "KmeansQuality", "Sweep", "Train", "IntoBase",
    "Compare", "NearestNeighbours", "Service",
)  # fmt: skip


def record(store: str) -> dict[str, Any]:
    latest = json.loads((Path(store) / "runs/latest.json").read_text())["id"]
    found: dict[str, Any] = json.loads((Path(store) / "runs" / latest / "run.json").read_text())
    return found


def test_the_plan_names_every_stage_and_the_trials(graftline: Callable[..., Any]) -> None:
    done = graftline("plan", FILE)
    assert done.code == 0, done.err
    for name in (*STAGES, "adapter.rank=8", "adapter.rank=16"):
        assert name in done.out, name


@pytest.mark.real
def test_a_dry_run_and_again(graftline: Callable[..., Any], environment: dict[str, str]) -> None:
    planned = graftline("plan", FILE, *DRY, "--json")
    assert planned.code == 0, planned.err
    done = graftline("run", FILE, *DRY)
    assert done.code == 0, done.err
    assert far_off(json.loads(planned.out), record(environment["GRAFTLINE_STORE"])) == []
    assert done.result["http_ok"] == 1 and len(done.result["adapter_digest"]) == 64
    lines = {line["name"]: line for line in record(environment["GRAFTLINE_STORE"])["stages"]}
    assert set(STAGES) <= set(lines)
    merged = lines["IntoBase"]["metrics"]
    assert merged["kl_exact"] < 1e-6 < merged["kl_original"], "what was trained is folded into what it was trained on"
    assert {trial["status"] for trial in lines["Sweep"]["metrics"]["trials"]} == {"full"}
    again = graftline("run", FILE, *DRY)
    assert again.result["ran"] == 0 and again.result["adapter_digest"] == done.result["adapter_digest"]


@pytest.mark.slow
def test_the_real_model_learns_the_queues(graftline: Callable[..., Any], environment: dict[str, str]) -> None:
    planned = graftline("plan", FILE, "--json")
    done = graftline("run", FILE, timeout=1800)
    print(done.out)  # the figures, where pytest is run with -s
    assert done.code == 0, done.err
    assert far_off(json.loads(planned.out), record(environment["GRAFTLINE_STORE"])) == []
    assert done.result["base"] <= 0.1 and done.result["tuned"] >= 0.7 and done.result["http_ok"] == 1
