import hashlib
import os

import pytest

from graftline.pipelines import pins as module
from graftline.pipelines.pins import OutsidePins
from graftline.stages.errors import FileMissing


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAFTLINE_CACHE", str(tmp_path / "cache"))


def test_relative_paths_count_from_the_base(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    pins = OutsidePins(str(tmp_path))
    assert pins.file("a.txt") == hashlib.sha256(b"abc").hexdigest() == pins.file(str(tmp_path / "a.txt"))
    assert pins.file(f"file://{tmp_path}/a.txt") == pins.file("a.txt")
    assert set(pins.to_dict()["files"]) == {"a.txt", f"{tmp_path}/a.txt", f"file://{tmp_path}/a.txt"}


@pytest.mark.parametrize("path", ["gone.txt", "file:///gone/for/good", "nosuch://x/y"])
def test_a_missing_file(tmp_path, path):
    with pytest.raises(FileMissing) as caught:
        OutsidePins(str(tmp_path)).file(path)
    assert str(tmp_path) in caught.value.do


def test_a_folder_counts_by_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "x").write_bytes(b"1")
    pins = OutsidePins(str(tmp_path))
    assert pins.file("a") == pins.file("b")
    (tmp_path / "b" / "y").write_bytes(b"")
    assert OutsidePins(str(tmp_path)).file("b") != pins.file("a")


def test_a_large_file_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 10)
    path = tmp_path / "large"
    path.write_bytes(b"x" * 100)
    os.utime(path, (1, 1))
    first = OutsidePins(str(tmp_path)).file("large")
    assert first == hashlib.sha256(b"x" * 100).hexdigest() and len(list((tmp_path / "cache" / "files").iterdir())) == 1
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert OutsidePins(str(tmp_path)).file("large") == first
    monkeypatch.undo()
    monkeypatch.setattr(module, "SMALL", 10)
    path.write_bytes(b"y" * 100)
    assert OutsidePins(str(tmp_path)).file("large") == hashlib.sha256(b"y" * 100).hexdigest()


def test_a_file_that_just_changed_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 10)
    (tmp_path / "fresh").write_bytes(b"x" * 100)
    OutsidePins(str(tmp_path)).file("fresh")
    assert not (tmp_path / "cache" / "files").exists()


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 10)
    (tmp_path / "cache").write_text("in the way")
    (tmp_path / "large").write_bytes(b"x" * 100)
    os.utime(tmp_path / "large", (1, 1))
    assert OutsidePins(str(tmp_path)).file("large") == hashlib.sha256(b"x" * 100).hexdigest()


def test_a_remote_file_is_read_once(tmp_path):
    path = tmp_path / "far.jsonl"
    path.write_bytes(b"x" * 100)
    os.utime(path, (1, 1))
    first = OutsidePins(str(tmp_path)).file(path.as_uri())
    assert first == hashlib.sha256(b"x" * 100).hexdigest()
    path.write_bytes(b"y" * 100)
    os.utime(path, (1, 1))
    assert OutsidePins(str(tmp_path)).file(path.as_uri()) == first, "same place, size and time: not read again"
    os.utime(path, (2, 2))
    assert OutsidePins(str(tmp_path)).file(path.as_uri()) == hashlib.sha256(b"y" * 100).hexdigest()


def test_models_are_pinned_once_and_as_the_lock_says():
    calls = []

    def find():
        calls.append(1)
        return f"commit {len(calls)}"

    pins = OutsidePins("/")
    assert pins.pinned("hub:x", find) == pins.pinned("hub:x", find) == "commit 1"
    later = OutsidePins("/", pins.to_dict())
    assert later.pinned("hub:x", find) == "commit 1" and calls == [1]
    assert later.pinned("hub:y", find) == "commit 2" and later.to_dict()["models"] == {
        "hub:x": "commit 1",
        "hub:y": "commit 2",
    }
    neither = OutsidePins("/", later.to_dict()).to_dict()
    assert neither["models"] == later.to_dict()["models"], "a run that asks for neither keeps both for the next"
