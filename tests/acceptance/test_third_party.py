"""Somebody else's installed method: found through the entry point, listed, and used like any other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

METHODS = '''
"""Methods of another package."""
from graftline.stages import Scorer


class Letters(Scorer):
    """Counts a row's letters, in the column `letters`."""

    method = "score.letters"
    origin = "another package"
    adds = {"letters": "int64"}

    def score_rows(self, table, context):
        return {"letters": [len(messages[0]["content"]) for messages in table["messages"].to_pylist()]}
'''
PIPELINE = """
from their_methods import Letters
from graftline.stages import read, select


def pipeline():
    return select.TopK(rows=Letters(rows=read.Jsonl(path="rows.jsonl", prompt="{text}")), by="letters", k=1)
"""


@pytest.fixture
def installed(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A package on the path, as pip would leave it."""
    site = tmp_path / "site"
    info = site / "their_methods-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "their_methods.py").write_text(METHODS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[graftline.methods]\nletters = their_methods:Letters\n")
    environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [environment.get("PYTHONPATH")])])
    return site


def test_it_is_listed(installed: Path, graftline: Callable[..., Any]) -> None:
    lines = {line["name"]: line for line in json.loads(graftline("methods", "--json").out)}
    assert lines["score.letters"]["slot"] == "installed/letters"
    assert lines["score.letters"]["origin"] == "another package"


def test_it_runs(
    installed: Path, graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str]
) -> None:
    file = pipeline_file(PIPELINE)
    (file.parent / "rows.jsonl").write_text('{"text": "short"}\n{"text": "much longer"}\n')
    done = graftline("run", str(file), "--address", "here")
    assert done.code == 0, done.err
    assert done.result["ran"] == 3
