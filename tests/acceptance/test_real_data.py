"""The quickstart's pipeline on real data: SNIPS intents."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_snips_intents_through_the_quickstart(graftline: Callable[..., Any], data_dir: Path, tmp_path: Path) -> None:
    """22 requests of each of the 7 intents, drawn by a hash of their text: 61 or so to train on, 77 to test on."""
    by_intent: dict[str, set[str]] = defaultdict(set)
    for line in (data_dir / "snips/train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_intent[row["intent"]].add(row["text"].strip())
    seeds = tmp_path / "snips.jsonl"
    with open(seeds, "w", encoding="utf-8") as stream:
        for intent in sorted(by_intent):
            for text in sorted(by_intent[intent], key=lambda text: zlib.crc32(text.encode()))[:22]:
                stream.write(json.dumps({"text": text, "queue": intent}) + "\n")
    done = graftline("run", "examples/quickstart.py", "--set", f"seeds={seeds}", timeout=1200)
    assert done.code == 0, done.err
    print(done.out)  # the figures, where pytest is run with -s
    assert done.result["base"] <= 0.1
    assert done.result["tuned"] >= 0.7, done.out
