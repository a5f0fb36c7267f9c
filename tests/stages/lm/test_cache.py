"""A cached folder is built once, whole or not at all."""

import threading
import time
from pathlib import Path

import pytest

from graftline.stages.errors import StoreFailed
from graftline.stages.lm.cache import cache_folder, cached


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_where_it_is(folder, monkeypatch):
    assert cache_folder() == folder
    monkeypatch.delenv("GRAFTLINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/graftline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "graftline"


def test_it_is_built_once_by_all_who_ask_at_once():
    built = []

    def build(out: Path) -> None:
        built.append(out)
        (out / "half").touch()
        time.sleep(0.2)
        (out / "whole").touch()

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(sorted(p.name for p in cached("it", build).iterdir())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert found == [["half", "whole"]] * 4


def test_a_build_that_fails_leaves_nothing(folder):
    def fail(out: Path) -> None:
        (out / "half").touch()
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        cached("it", fail)
    assert [path.name for path in folder.iterdir()] == [".it.lock"]
    assert (cached("it", lambda out: (out / "whole").touch()) / "whole").exists()


def test_a_folder_that_cannot_be_written_is_named(folder):
    folder.touch()
    with pytest.raises(StoreFailed, match=r"cache/it: cannot fill the cache: .* Free space, or set GRAFTLINE_CACHE"):
        cached("it", lambda out: None)


def test_folders_inside_it_can_be_entered():
    def build(out: Path) -> None:
        (out / "inner").mkdir()
        (out / "inner" / "file").touch()

    assert (cached("it", build) / "inner").stat().st_mode & 0o111
