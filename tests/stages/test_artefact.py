"""Opened artefacts: listed files only, parts, directories."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from graftline.stages.artefact import Artefact
from graftline.stages.errors import StoreFailed


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    for part, ids in (("left", ["b", "a"]), ("right", ["c"])):
        (tmp_path / "rows" / part).mkdir(parents=True)
        pq.write_table(pa.table({"id": ids, "x": [1] * len(ids)}), tmp_path / "rows" / part / "0.parquet")
        pq.write_table(pa.table({"id": ["stray"], "x": [0]}), tmp_path / "rows" / part / "unlisted.parquet")
    (tmp_path / "report.json").write_text(json.dumps({"ok": 1}))
    files = {name: {} for name in ("rows/left/0.parquet", "rows/right/0.parquet", "report.json")}
    views = {"left": {"rows": 2, "digest": "L"}, "right": {"rows": 1, "digest": "R"}}
    manifest = {"kind": "rows", "fingerprint": "f", "digest": "D", "metrics": {"m": 1}, "rows": {"kept": 3}}
    return Artefact({**manifest, "views": views, "files": files}, fs.LocalFileSystem(), str(tmp_path))


def test_only_listed_files_are_read_and_rows_come_sorted(artefact: Artefact) -> None:
    assert artefact.rows()["id"].to_pylist() == ["a", "b", "c"]
    assert artefact.rows(["x"]).column_names == ["x"]
    assert (artefact.count, artefact.digest, artefact.metrics) == (3, "D", {"m": 1})


def test_a_part_is_its_own_rows_and_digest(artefact: Artefact) -> None:
    left = artefact.view("left")
    assert left.rows()["id"].to_pylist() == ["a", "b"]
    assert (left.count, left.digest) == (2, "L")


def test_a_copy_has_the_listed_files_alone(artefact: Artefact, tmp_path: Path) -> None:
    artefact.copy(tmp_path / "copy")
    found = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")}
    assert found == {"rows/left/0.parquet", "rows/right/0.parquet", "report.json"}


def test_a_missing_file_is_a_store_failure(artefact: Artefact) -> None:
    (Path(artefact.path) / "rows/left/0.parquet").unlink()
    with pytest.raises(StoreFailed):
        artefact.rows()


def test_json_and_directory(artefact: Artefact) -> None:
    assert artefact.json("report.json") == {"ok": 1}
    assert (artefact.directory() / "report.json").exists()


def test_a_remote_directory_is_copied_once(artefact: Artefact, tmp_path: Path) -> None:
    remote = fs.SubTreeFileSystem(str(Path(artefact.path)), fs.LocalFileSystem())
    cache = tmp_path / "cache"
    away = Artefact(artefact.manifest, remote, "", cache=str(cache))
    # a path-less artefact of a sub-tree stands in for a bucket
    away = Artefact({**artefact.manifest, "files": {"report.json": {}}}, remote, ".", cache=str(cache))
    first = away.directory()
    assert json.loads((first / "report.json").read_text()) == {"ok": 1}
    (Path(artefact.path) / "report.json").unlink()
    assert (away.directory() / "report.json").exists()
