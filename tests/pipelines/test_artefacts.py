import dataclasses
import json

import pyarrow.fs as fs
import pytest

from graftline.pipelines.artefacts import Artefacts, Identity, entries, entry, files_digest
from graftline.pipelines.store import Store

IDENTITY = Identity("Made", "f" * 64, (("a" * 64, "1" * 64), ("b" * 64, "2" * 64)))


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    return Store("bucket/store", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))


def committed(store, identity=IDENTITY, content=b"content", **more):
    attempt = identity.new_attempt()
    store.write_bytes(f"{attempt}/file", content)
    manifest = {
        "schema": 1, "kind": "report", "fingerprint": identity.fingerprint, "digest": "d",
        "files": {"file": entry(content)}, **more,
    }  # fmt: skip
    return attempt, Artefacts(store).commit(identity, attempt, manifest)


def test_found_once_committed(store):
    artefacts = Artefacts(store)
    assert artefacts.find(IDENTITY) is None and not artefacts.any(IDENTITY)
    attempt, made = committed(store)
    assert artefacts.find(IDENTITY) == made and artefacts.any(IDENTITY) and list(artefacts.listed()) == [made]
    assert made.path == store.path(attempt) and attempt.startswith(f"artefacts/Made-{'f' * 16}/")
    assert store.list(IDENTITY.folder) == sorted([IDENTITY.pointer, f"{attempt}/"])


def test_only_for_its_inputs(store):
    committed(store)
    other = dataclasses.replace(IDENTITY, parents=(("a" * 64, "1" * 64), ("b" * 64, "3" * 64)))
    assert Artefacts(store).find(other) is None and Artefacts(store).any(other)
    turned = dataclasses.replace(IDENTITY, parents=IDENTITY.parents[::-1])
    assert Artefacts(store).find(turned) is not None, "the order in which inputs are listed does not matter"
    assert Artefacts(store).find(dataclasses.replace(IDENTITY, source="its code changed")) is None


@pytest.mark.parametrize(
    "fault", ["no manifest", "half a manifest", "a file is gone", "a file is short", "other schema"]
)
def test_only_if_whole(store, fault):
    attempt, _ = committed(store)
    if fault == "no manifest":
        store.delete(f"{attempt}/artefact.json")
    elif fault == "half a manifest":
        store.write_bytes(f"{attempt}/artefact.json", store.read_bytes(f"{attempt}/artefact.json")[:40])
    elif fault == "a file is gone":
        store.delete(f"{attempt}/file")
    elif fault == "a file is short":
        store.write_bytes(f"{attempt}/file", b"cont")
    else:
        store.write_json(f"{attempt}/artefact.json", {**store.read_json(f"{attempt}/artefact.json"), "schema": 2})
    assert Artefacts(store).find(IDENTITY) is None


def test_an_attempt_that_was_not_committed_does_not_count(store):
    attempt = IDENTITY.new_attempt()
    store.write_bytes(f"{attempt}/file", b"content")
    assert Artefacts(store).find(IDENTITY) is None and not Artefacts(store).any(IDENTITY)
    assert IDENTITY.new_attempt() != attempt, "two writers never share a folder"


def test_a_second_writer_only_moves_the_pointer(store):
    first, made = committed(store, content=b"first")
    second, again = committed(store, content=b"second")
    assert Artefacts(store).find(IDENTITY) == again != made
    assert Artefacts(store).at(first) == made and first != second


def test_generations_are_remembered(store):
    artefacts = Artefacts(store)
    assert artefacts.generation(IDENTITY) == 0
    committed(store, generation=3)
    assert artefacts.generation(IDENTITY) == 3
    pointer = json.loads(store.read_bytes(IDENTITY.pointer))
    assert pointer["parents"] == [{"fingerprint": one, "digest": other} for one, other in IDENTITY.parents]


def test_entries_of_a_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"abc")
    (tmp_path / ".half").write_bytes(b"not finished")
    (tmp_path / "artefact.json").write_bytes(b"{}")
    assert entries(tmp_path) == {"model/weights": entry(b"abc")}
    assert entry(b"abc", rows=2) == {
        "bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "rows": 2,
    }  # fmt: skip


def test_the_digest_of_files_leaves_out_what_is_volatile():
    files = {"a": entry(b"1"), "log.jsonl": entry(b"2"), "times/x": entry(b"3")}
    quiet = files_digest(files, ["log.jsonl", "times/"])
    assert quiet == files_digest({"a": entry(b"1")}) != files_digest(files)
    assert quiet != files_digest({"b": entry(b"1")})
