"""Collecting what no run refers to any more: artefacts, ledgers, scratch folders, broken attempts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from graftline.pipelines.record import LATEST
from graftline.pipelines.store import Store

GRACE = 3600.0
"""Seconds for which something is left alone after its last change: a run may be making it."""


@dataclass(frozen=True)
class Collected:
    """Something that was (or would be) deleted.

    Args:
        name: a folder or file of the store.
        bytes: how much it held.
    """

    name: str
    bytes: int


def collect(
    store: Store, *, keep_runs: int | None = None, dry_run: bool = False, grace: float = GRACE
) -> list[Collected]:
    """Deletes what no run refers to.

    Args:
        keep_runs: keep only so many of the latest finished runs' records (None: all); unfinished runs, and the one
            called latest, are always kept.
        dry_run: only say what would go.
        grace: seconds for which what was changed lately is left alone.
    """
    gone = [
        *_old_runs(store, keep_runs),
        *_unreferenced(store, _kept_records(store, keep_runs), grace),
    ]
    found = [Collected(name, _bytes(store, name)) for name in gone]
    if not dry_run:
        for name in gone:
            store.delete(name)
    return found


def _records(store: Store) -> list[tuple[str, dict[str, Any]]]:
    """Name and record of every run, the oldest first."""
    runs = [name.rstrip("/") for name in store.list("runs") if name.endswith("/")]
    return [(name, store.read_json(f"{name}/run.json") or {}) for name in runs]


def _kept_records(store: Store, keep: int | None) -> list[dict[str, Any]]:
    gone = set(_old_runs(store, keep))
    return [record for name, record in _records(store) if name not in gone]


def _old_runs(store: Store, keep: int | None) -> list[str]:
    if keep is None:
        return []
    latest = f"runs/{(store.read_json(LATEST) or {}).get('id')}"
    done = [name for name, record in _records(store) if record.get("state") == "done"]
    done.sort(key=lambda name: (name == latest, name))  # two runs may have begun in one second
    return [name for name in done[: max(0, len(done) - keep)] if name != latest]


def _unreferenced(store: Store, records: list[dict[str, Any]], grace: float) -> Iterator[str]:
    attempts, ledgers, fingerprints = set(), set(), set()
    for record in records:
        for line in record.get("stages", ()):
            attempts.add(store.name(line["path"]) if line["path"] else "")
            ledgers.add(line.get("ledger") or "")
            if record.get("state") != "done":
                fingerprints.add(line["fingerprint"][:16])
    for folder in (name.rstrip("/") for name in store.list("artefacts")):
        inner = store.list(folder)
        # Of what an unfinished run may be making now, attempts without a manifest stay.
        unfinished = folder.rpartition("-")[2] in fingerprints
        making = {name.rstrip("/") for name in inner if unfinished and store.read_json(f"{name}artefact.json") is None}
        going = {
            name.rstrip("/")
            for name in inner
            if name.endswith("/") and name.rstrip("/") not in attempts | making and not _fresh(store, name, grace)
        }
        yield from sorted(going)
        for name in inner:
            pointer = store.read_json(name) if name.endswith(".json") else None
            if pointer is not None and f"{folder}/{pointer.get('attempt')}" in going:
                yield name
    for name in (each.rstrip("/") for each in store.list("ledger")):
        if name not in ledgers and not _fresh(store, name, grace):
            yield name
    for name in (each.rstrip("/") for each in store.list("scratch")):
        asked = name.removesuffix(".lock").rsplit("-", 2)
        if (len(asked) < 3 or asked[1] not in fingerprints) and not _fresh(store, name, grace):
            yield name


def _infos(store: Store, name: str) -> list[Any]:
    import pyarrow.fs as fs

    path = store.path(name.rstrip("/"))
    (info,) = store.filesystem.get_file_info([path])
    if info.type != fs.FileType.Directory:
        return [info]
    inner: list[Any] = store.filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return [info, *inner]


def _fresh(store: Store, name: str, grace: float) -> bool:
    times = [info.mtime_ns for info in _infos(store, name) if info.mtime_ns]
    return bool(times) and time.time() - max(times) / 1e9 < grace


def _bytes(store: Store, name: str) -> int:
    return sum(int(info.size or 0) for info in _infos(store, name))
