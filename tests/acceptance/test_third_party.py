"""Somebody else's installed method: found through the entry point, listed, and used like any other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftline.pipelines import Run
from graftline.pipelines.store import Store

METHODS = '''
"""Methods of another package."""
import sys
from pathlib import Path
from graftline.stages import Scorer


class Letters(Scorer):
    """Counts a row's letters, in the column `letters`, and says which program did, in `program`."""

    method = "score.letters"
    origin = "another package"
    adds = {"letters": "int64", "program": "string"}

    def score_rows(self, table, context):
        letters = [len(messages[0]["content"]) for messages in table["messages"].to_pylist()]
        return {"letters": letters, "program": [Path(sys.argv[0]).name] * len(letters)}
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


def check(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str], *where: str
) -> str:
    """Runs the pipeline; the name of the program that ran the installed method."""
    file = pipeline_file(PIPELINE)
    (file.parent / "rows.jsonl").write_text('{"text": "short"}\n{"text": "much longer"}\n')
    done = graftline("run", str(file), *where)
    assert done.code == 0, done.err
    assert done.result["ran"] == 3
    (row,) = Run.find(Store(environment["GRAFTLINE_STORE"]), "latest")["result"].rows().to_pylist()
    assert row["letters"] == len("much longer")
    return str(row["program"])


def test_it_runs(
    installed: Path, graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str]
) -> None:
    assert check(graftline, pipeline_file, environment, "--address", "here") == "graftline"


@pytest.mark.real
def test_it_runs_on_rays_workers(
    installed: Path, graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str]
) -> None:
    environment.pop("RAY_ADDRESS", None)
    assert "worker" in check(graftline, pipeline_file, environment)
