"""What stands for the outside world in fingerprints: contents of files, identities of models."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graftline.pipelines.context import absolute
from graftline.stages.errors import FileMissing
from graftline.stages.lm.cache import cache_folder
from graftline.stages.rows import digest

SMALL = 1 << 20
"""Bytes up to which a file is simply read."""
SETTLED = 2.0
"""Seconds after a change during which size and time do not tell two contents apart."""


class OutsidePins:
    """The outside world as `plan` finds it; what it found goes into the run's `lock.json`.

    Args:
        base: the folder from which relative paths count.
        lock: an earlier run's lock: its models are taken, so that a run goes on with what it began with.
    """

    def __init__(self, base: str, lock: Mapping[str, Any] | None = None) -> None:
        self.base = base
        self.files: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self._earlier: Mapping[str, str] = (lock or {}).get("models", {})

    def file(self, path: str) -> str:
        """The sha256 of a file, or a digest of a folder's files.

        Raises:
            FileMissing: it is not there, or cannot be read.
        """
        if path not in self.files:
            place = absolute(path, self.base)
            try:
                self.files[path] = _remote(place) if "://" in place else _local(Path(place))
            except OSError as error:
                what = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
                raise FileMissing(
                    what, where=place, do=f"relative paths count from the pipeline file's folder, {self.base}"
                ) from error
        return self.files[path]

    def pinned(self, name: str, find: Callable[[], str]) -> str:
        """The identity recorded under a name, else what `find` answers, recorded from now on."""
        if name not in self.names:
            self.names[name] = self._earlier.get(name) or find()
        return self.names[name]

    def to_dict(self) -> dict[str, Any]:
        """As in `lock.json`."""
        models = {**self._earlier, **self.names}  # what this run does not ask for, the next one may
        return {"schema": 1, "files": dict(sorted(self.files.items())), "models": dict(sorted(models.items()))}


def _local(path: Path) -> str:
    if path.is_dir():
        inner = sorted(each for each in path.rglob("*") if each.is_file())
        return digest([[each.relative_to(path).as_posix(), _local(each)] for each in inner])
    state = path.stat()

    def read() -> str:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    if state.st_size <= SMALL:
        return read()
    return _remembered(f"{path} {state.st_size} {state.st_mtime_ns}", state.st_mtime, read)


def _remembered(key: str, changed: float, read: Callable[[], str]) -> str:
    """A content's digest from the cache, where its place, size and time (`changed`, seconds) are those it was read
    with."""
    kept = cache_folder() / "files" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    settled = time.time() - changed > SETTLED
    if settled and kept.exists():
        try:
            known = json.loads(kept.read_text(encoding="utf-8"))
            if known["key"] == key:
                return str(known["sha256"])
        except (ValueError, KeyError, OSError):
            kept.unlink(missing_ok=True)
    found = read()
    if settled:
        _keep(kept, {"key": key, "sha256": found})
    return found


def _keep(path: Path, value: Mapping[str, Any]) -> None:
    """Remembers a digest; a cache folder that cannot be written costs time, nothing else."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value), encoding="utf-8")
        partial.replace(path)
    except OSError:
        return


def _remote(uri: str) -> str:
    import pyarrow as pa
    import pyarrow.fs as fs

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, ValueError) as error:
        raise OSError(str(error)) from error
    (info,) = filesystem.get_file_info([path])

    def read() -> str:
        found = hashlib.sha256()
        with filesystem.open_input_stream(path) as stream:
            while block := stream.read(1 << 22):
                found.update(block)
        return found.hexdigest()

    return _remembered(f"{uri} {info.size} {info.mtime_ns}", info.mtime_ns / 1e9, read) if info.mtime_ns else read()
