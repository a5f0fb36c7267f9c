"""Artefacts in the store: where they lie, which one is in force, and how one is committed.

`artefacts/<stage>-<fingerprint, 16 hex>/<attempt>/` holds an attempt's files and last its `artefact.json`; beside the
attempts, `<digest of the inputs' digests, 16 hex>.json` names the attempt in force for those inputs.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.pipelines.store import Store
from graftline.stages.artefact import Artefact
from graftline.stages.errors import StoreFailed
from graftline.stages.lm.cache import cache_folder
from graftline.stages.rows import digest

MANIFEST = "artefact.json"


@dataclass(frozen=True)
class Identity:
    """What an artefact is asked to be: it is in force only for this fingerprint, made from these inputs.

    Args:
        stage: the class's name.
        fingerprint: of the stage.
        parents: fingerprint and digest of each input.
        source: digest of the code of a class that Graftline does not ship ("" for its own, which have versions).
    """

    stage: str
    fingerprint: str
    parents: tuple[tuple[str, str], ...] = ()
    source: str = ""

    @property
    def folder(self) -> str:
        return f"artefacts/{self.stage}-{self.fingerprint[:16]}"

    @property
    def inputs(self) -> str:
        """64 hex digits over the inputs."""
        return digest([sorted(self.parents), *([self.source] if self.source else [])])

    @property
    def pointer(self) -> str:
        return f"{self.folder}/{self.inputs[:16]}.json"

    @property
    def scratch(self) -> str:
        return f"scratch/{self.stage}-{self.fingerprint[:16]}-{self.inputs[:16]}"

    def new_attempt(self) -> str:
        """The folder of a new attempt: nobody else's."""
        return f"{self.folder}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"


class Artefacts:
    """The artefacts of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, identity: Identity) -> Artefact | None:
        """The artefact in force; None where there is none, or it is not whole."""
        pointer = self.store.read_json(identity.pointer)
        if not pointer or pointer.get("inputs") != identity.inputs:
            return None
        found = self.at(f"{identity.folder}/{pointer.get('attempt')}")
        return found if found is not None and found.fingerprint == identity.fingerprint else None

    def any(self, identity: Identity) -> bool:
        """Whether there is an artefact of this fingerprint, for whatever inputs."""
        return any(name.endswith(".json") for name in self.store.list(identity.folder))

    def at(self, attempt: str) -> Artefact | None:
        """The artefact in an attempt's folder; None unless its manifest is whole and its files are all there."""
        manifest = self.store.read_json(f"{attempt}/{MANIFEST}")
        if not manifest or manifest.get("schema") != 1:
            return None
        files: Mapping[str, Any] = manifest["files"]
        sizes = self.store.sizes([f"{attempt}/{name}" for name in files]) if files else {}
        if any(sizes.get(f"{attempt}/{name}") != entry["bytes"] for name, entry in files.items()):
            return None
        return self.opened(attempt, manifest)

    def opened(self, attempt: str, manifest: dict[str, Any]) -> Artefact:
        return Artefact(
            manifest,
            self.store.filesystem,
            self.store.path(attempt),
            cache=str(cache_folder() / "store"),
            uri=self.store.uri_of(attempt),
        )

    def generation(self, identity: Identity) -> int:
        """How often the artefact in force has been retried."""
        pointer = self.store.read_json(identity.pointer)
        return int(pointer.get("generation", 0)) if pointer else 0

    def commit(self, identity: Identity, attempt: str, manifest: dict[str, Any]) -> Artefact:
        """Takes an attempt, whose files are all there, as done: its manifest, then the pointer to it."""
        if self.store.local:
            for name in manifest["files"]:
                _sync(self.store.local_path(f"{attempt}/{name}"))
        self.store.write_json(f"{attempt}/{MANIFEST}", manifest)
        pointer = {
            "schema": 1,
            "attempt": attempt.rpartition("/")[2],
            "generation": manifest.get("generation", 0),
            "inputs": identity.inputs,
            "parents": [{"fingerprint": fingerprint, "digest": found} for fingerprint, found in identity.parents],
            "digest": manifest["digest"],
        }
        self.store.write_json(identity.pointer, pointer)
        return self.opened(attempt, manifest)

    def listed(self) -> Iterator[Artefact]:
        """Every committed artefact, by folder and attempt."""
        for folder in self.store.list("artefacts"):
            for attempt in self.store.list(folder.rstrip("/")):
                if attempt.endswith("/") and (found := self.at(attempt.rstrip("/"))) is not None:
                    yield found


def entry(content: bytes, rows: int | None = None) -> dict[str, Any]:
    """A file's entry in a manifest."""
    found: dict[str, Any] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return found if rows is None else {**found, "rows": rows}


def entries(folder: Path) -> dict[str, Any]:
    """The entries of all files below a local folder; unfinished ones (`.name`) are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name.startswith(".") or name == MANIFEST:
            continue
        with open(path, "rb") as stream:
            found[name] = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    return found


def files_digest(files: Mapping[str, Mapping[str, Any]], without: Sequence[str] = ()) -> str:
    """The digest of files: names and sha256, sorted; `without` names files, or folders with a `/` at the end."""
    return digest(
        sorted(
            [name, each["sha256"]]
            for name, each in files.items()
            if not any(name == left or (left.endswith("/") and name.startswith(left)) for left in without)
        )
    )


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise StoreFailed(f"a file of the attempt is gone: {error}", where=str(path), do="run again") from error
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
