import errno
import os
import subprocess
from pathlib import Path

import pyarrow.fs as fs
import pytest

from graftline.pipelines.store import Store, failed, is_full
from graftline.stages.errors import StoreFailed, StoreRefused


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    """A local store, and one on a filesystem that offers nothing but pyarrow.fs's own calls."""
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    return Store("bucket/store", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_what_is_written_is_read_back(store):
    assert not store.exists("a/b.json") and store.read_json("a/b.json") is None and store.list("a") == []
    store.write_bytes("a/b.json", b'{"n": 1}')
    store.write_bytes("a/b.json", b'{"n": 2}')
    store.write_json("a/c/d.json", {"n": 3})
    assert store.read_bytes("a/b.json") == b'{"n": 2}' and store.read_json("a/c/d.json") == {"n": 3}
    assert store.list("a") == ["a/b.json", "a/c/"] and store.list("a", deep=True) == ["a/b.json", "a/c/d.json"]
    assert store.sizes(["a/b.json", "a/nothing", "a/c"]) == {"a/b.json": 8}
    store.delete("a/c")
    store.delete("a/c")
    assert store.list("", deep=True) == ["a/b.json"]
    store.write_bytes("broken.json", b'{"n": ')
    assert store.read_json("broken.json") is None
    with pytest.raises(StoreFailed, match="cannot read it"):
        store.read_bytes("nothing")


def test_files_go_up_and_down(store, tmp_path):
    here = tmp_path / "here"
    here.write_bytes(b"x" * 5_000_000)
    store.upload(here, "far/away")
    store.download("far/away", tmp_path / "back" / "again")
    assert (tmp_path / "back" / "again").read_bytes() == here.read_bytes()


def test_a_local_write_is_whole_or_not_there(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write_bytes("file", b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFailed, match="disk is full"):
        store.write_bytes("file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing half-written stays"


def test_default(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAFTLINE_STORE", raising=False)
    assert Store.default().root == str(tmp_path / "graftline-store")
    monkeypatch.setenv("GRAFTLINE_STORE", str(tmp_path / "other"))
    assert Store.default().root == str(tmp_path / "other")
    assert Store.default(f"file://{tmp_path}/third").root == f"{tmp_path}/third"
    assert Store.default(f"file://{tmp_path}/third").local


def test_secrets_are_not_shown():
    store = Store("s3://key:secret@bucket/path?endpoint_override=http%3A%2F%2Flocalhost%3A9&region=eu-west-1")
    assert store.shown == "s3://bucket/path" and "secret" not in repr(store) and store.root == "bucket/path"
    assert not store.local


def test_writable_makes_the_folder(tmp_path):
    Store(str(tmp_path / "a" / "b")).writable()
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_in_the_way_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("I am no folder")
    with pytest.raises(StoreRefused, match="a file that is not a folder") as caught:
        Store(f"{tmp_path}/file{below}").writable()
    assert caught.value.where == f"{tmp_path}/file{below}" and "--store" in caught.value.do


def test_a_read_only_store_is_refused(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreRefused, match="is read-only"):
        Store(str(small_disk / "store")).writable()
    with pytest.raises(StoreRefused, match="is read-only"):
        Store(str(small_disk)).writable()


def test_a_full_disk_says_so(small_disk):
    store = Store(str(small_disk / "store"))
    store.writable()
    with pytest.raises(StoreFailed, match="the disk is full") as caught:
        store.write_bytes("big", b"x" * 2_000_000)
    assert "free space" in caught.value.do and store.list() == []
    (small_disk / "filler").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.raises(StoreRefused, match="full disk"):
        store.writable()


@pytest.mark.parametrize("uri", ["nosuch://bucket/path", "s3://bucket/x?nonsense=1"])
def test_an_unknown_uri_is_refused(uri):
    with pytest.raises(StoreRefused, match="cannot be opened"):
        Store(uri)


def test_a_full_disk_is_recognised_behind_other_errors():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as inner:
            raise RuntimeError("could not save") from inner
    except RuntimeError as error:
        assert is_full(error) and failed("x", "here", error).what == "the disk is full"
    assert is_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full(ValueError("full of beans"))


def test_names_and_paths(tmp_path):
    store = Store(str(tmp_path))
    assert store.name(store.path("a/b")) == "a/b" and store.local_path("a/b") == Path(tmp_path, "a", "b")
