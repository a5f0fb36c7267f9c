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

FILE = "examples/quickstart.py"
DRY = ("--set", "model=tiny", "--set", "engine=scripted", "--set", "epochs=0.5")
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
    """Stage key → digest in the latest run."""
    return {stage["key"]: stage["digest"] for stage in record(store)["stages"]}


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
def test_killed_run_again_and_cached(
    graftline: Callable[..., Any], start: Callable[..., subprocess.Popen[str]], environment: dict[str, str]
) -> None:
    store = environment["GRAFTLINE_STORE"]
    process = start("run", FILE)
    deadline = time.monotonic() + 400
    while not list(Path(store).glob("artefacts/KmeansQuality-*/*/artefact.json")):  # half-way: training comes next
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    time.sleep(8)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    done = graftline("run", FILE, timeout=1200)
    assert done.code == 0, done.err
    result = done.result
    assert result["cached"] >= 5, "what was done before the kill is taken from the store"
    assert result["tuned"] >= 0.70 and result["merged"] >= 0.70 and result["base"] <= 0.10
    assert result["choice_tuned"] > result["choice_base"] + 0.3, "more is learned than a format"
    assert result["http_ok"] == 1
    assert len(result["adapter_digest"]) == 64

    begin = time.perf_counter()
    again = graftline("run", FILE)
    assert time.perf_counter() - begin < 10
    assert again.code == 0 and again.result["ran"] == 0
    assert {**again.result, "seconds": 0, "cached": 0, "ran": 0, "fetch_seconds": 0} == {
        **result,
        "seconds": 0,
        "cached": 0,
        "ran": 0,
        "fetch_seconds": 0,
    }
    page = next(Path(store).glob("runs/*/report.html"))
    assert "exact_match" in page.read_text()


@pytest.mark.real
def test_a_dry_run_and_again(graftline: Callable[..., Any], environment: dict[str, str]) -> None:
    planned = graftline("plan", FILE, *DRY, "--json")
    assert planned.code == 0, planned.err
    done = graftline("run", FILE, *DRY)
    assert done.code == 0, done.err
    assert far_off(json.loads(planned.out), record(environment["GRAFTLINE_STORE"])) == []
    assert done.result["http_ok"] == 1 and len(done.result["adapter_digest"]) == 64
    (transcript,) = Path(environment["GRAFTLINE_STORE"]).glob("artefacts/Service-*/*/transcript.json")
    answered = [(said["model"], said["status"]) for said in json.loads(transcript.read_text())]
    assert sorted(answered) == [("auto", 200), ("base", 200), ("merged", 200), ("tickets", 200)]
    lines = {line["name"]: line for line in record(environment["GRAFTLINE_STORE"])["stages"]}
    merged = lines["IntoBase"]["metrics"]
    assert merged["kl_exact"] < 1e-6 < merged["kl_original"], "what was trained is folded into what it was trained on"
    assert {trial["status"] for trial in lines["Sweep"]["metrics"]["trials"]} == {"full"}
    again = graftline("run", FILE, *DRY)
    assert again.result["ran"] == 0 and again.result["adapter_digest"] == done.result["adapter_digest"]


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
