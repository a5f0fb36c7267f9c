"""The quickstart's pipeline on real data: SNIPS intents, Banking77."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..plan_and_record import far_off


def drawn(source: Path, target: Path, label: str, *, labels: int, each: int) -> None:
    """Writes so many texts of each of the first labels in the alphabet, drawn by a hash of the text."""
    by_label: dict[str, set[str]] = defaultdict(set)
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_label[row[label].replace("_", " ")].add(row["text"].strip())
    with open(target, "w", encoding="utf-8") as stream:
        for name in sorted(by_label)[:labels]:
            for text in sorted(by_label[name], key=lambda text: zlib.crc32(text.encode()))[:each]:
                stream.write(json.dumps({"text": text, "queue": name}) + "\n")


def through_the_quickstart(graftline: Callable[..., Any], store: str, *more: str) -> dict[str, Any]:
    """The RESULT of a run that did about what its plan said."""
    planned = graftline("plan", "examples/quickstart.py", *more, "--json")
    done = graftline("run", "examples/quickstart.py", *more, timeout=3000)
    print(done.out)  # the figures, where pytest is run with -s
    assert done.code == 0, done.err
    latest = json.loads((Path(store) / "runs/latest.json").read_text())["id"]
    record = json.loads((Path(store) / "runs" / latest / "run.json").read_text())
    assert far_off(json.loads(planned.out), record) == []
    result: dict[str, Any] = done.result
    return result


@pytest.mark.slow
def test_snips_intents(
    graftline: Callable[..., Any], environment: dict[str, str], data_dir: Path, tmp_path: Path
) -> None:
    """22 requests of each of the 7 intents: 61 or so to train on, 77 to test on."""
    seeds = tmp_path / "snips.jsonl"
    drawn(data_dir / "snips/train.jsonl", seeds, "intent", labels=7, each=22)
    result = through_the_quickstart(graftline, environment["GRAFTLINE_STORE"], "--set", f"seeds={seeds}")
    assert result["base"] <= 0.1
    assert result["tuned"] >= 0.7 and result["merged"] >= 0.7


@pytest.mark.slow
def test_banking77(graftline: Callable[..., Any], environment: dict[str, str], data_dir: Path, tmp_path: Path) -> None:
    """20 questions of each of 20 of the 77 intents, many of them close to one another: 160 to train on, 200 to test."""
    seeds = tmp_path / "banking77.jsonl"
    drawn(data_dir / "banking77/train.jsonl", seeds, "category", labels=20, each=20)
    more = ("--set", f"seeds={seeds}", "--set", "budget=80")
    result = through_the_quickstart(graftline, environment["GRAFTLINE_STORE"], *more)
    assert result["base"] <= 0.1
    assert result["tuned"] >= 0.5 and result["merged"] >= 0.5
