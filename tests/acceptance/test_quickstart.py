"""The quickstart as a stranger sees it: it runs, survives a kill, and the second time everything is cached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..plan_and_record import far_off
from .conftest import DRY, FILE, DryRun, killed_in_training

STAGES = (
    "Jsonl", "Split", "SelfInstruct", "Difficulty", "NearDuplicates", "KmeansQuality", "Sweep", "Train", "IntoBase",
    "Compare", "NearestNeighbours", "Service", "adapter.rank=8", "adapter.rank=16",
)  # fmt: skip


def record(store: str) -> dict[str, Any]:
    """The latest run."""
    latest = json.loads((Path(store) / "runs/latest.json").read_text())["id"]
    found: dict[str, Any] = json.loads((Path(store) / "runs" / latest / "run.json").read_text())
    return found


def digests(store: str) -> dict[str, str]:
    """Stage key → digest in the latest run, without a sweep's trials, which one that is done does not ask for."""
    return {stage["key"]: stage["digest"] for stage in record(store)["stages"] if not stage["asked_by"]}


def test_the_plan_takes_under_two_seconds_and_names_every_stage(graftline: Callable[..., Any]) -> None:
    begin = time.perf_counter()
    done = graftline("plan", FILE)
    seconds = time.perf_counter() - begin
    assert done.code == 0, done.err
    shown = done.out + done.err
    for name in STAGES:
        assert name in shown, name
    assert seconds < 2


@pytest.mark.real
def test_killed_in_training_run_again_and_cached(graftline: Callable[..., Any], dry_run: DryRun) -> None:
    result = dry_run.result
    assert result["cached"] >= 5, "what was done before the kill is taken from the store"
    assert result["http_ok"] == 1 and len(result["adapter_digest"]) == 64
    (transcript,) = Path(dry_run.store).glob("artefacts/Service-*/*/transcript.json")
    answered = [(said["model"], said["status"]) for said in json.loads(transcript.read_text())]
    assert sorted(answered) == [("auto", 200), ("base", 200), ("merged", 200), ("tickets", 200)]
    assert far_off(dry_run.planned, record(dry_run.store)) == []
    lines = {line["name"]: line for line in record(dry_run.store)["stages"]}
    merged = lines["IntoBase"]["metrics"]
    assert merged["kl_exact"] < 1e-6 < merged["kl_original"], "what was trained is folded into what it was trained on"
    assert {trial["status"] for trial in lines["Sweep"]["metrics"]["trials"]} == {"full"}
    again = graftline("run", FILE, *DRY, "--store", dry_run.store)
    assert again.result["ran"] == 0 and again.result["adapter_digest"] == result["adapter_digest"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_queues_are_learnt_within_minutes(graftline: Callable[..., Any], seed: int, tmp_path: Path) -> None:
    """Times are those of two quiet cores; 12 minutes on a processor without bf16 matrix units."""
    done = graftline("run", FILE, "--set", f"seed={seed}", "--store", str(tmp_path / "store"), timeout=1800)
    print(done.out)  # the figures, where pytest is run with -s
    assert done.code == 0, done.err
    result = done.result
    assert result["base"] <= 0.10 and result["tuned"] >= 0.80 and result["merged"] >= 0.80
    assert result["choice_tuned"] > result["choice_base"] + 0.3, "more is learnt than a format"
    assert result["http_ok"] == 1
    assert result["seconds"] <= (480 if "amx_bf16" in Path("/proc/cpuinfo").read_text() else 720)


@pytest.mark.slow
def test_the_real_one_killed_run_again_and_cached(
    graftline: Callable[..., Any], start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    killed_in_training(start, store)
    done = graftline("run", FILE, "--store", str(store), timeout=1800)
    assert done.code == 0, done.err
    result = done.result
    assert result["cached"] >= 5 and result["tuned"] >= 0.80 and result["http_ok"] == 1
    begin = time.perf_counter()
    again = graftline("run", FILE, "--store", str(store))
    assert time.perf_counter() - begin < 10
    assert again.code == 0 and again.result["ran"] == 0
    spent = dict.fromkeys(("seconds", "cached", "ran", "fetch_seconds"), 0)
    assert again.result | spent == result | spent


@pytest.mark.slow
def test_ten_kills_at_random_moments_end_in_the_same_digests(
    graftline: Callable[..., Any],
    start: Callable[..., subprocess.Popen[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    import random

    whole = graftline("run", FILE, *DRY, "--store", str(tmp_path / "whole"))
    assert whole.code == 0, whole.err
    wanted = digests(str(tmp_path / "whole"))
    moments = random.Random(7)
    store = str(tmp_path / "killed")
    for _ in range(10):
        process = start("run", FILE, *DRY, "--store", store)
        time.sleep(moments.uniform(2, 40))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = graftline("run", FILE, *DRY, "--store", store)
    assert done.code == 0, done.err
    assert digests(store) == wanted
