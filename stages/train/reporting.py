"""Where the loop leaves its checkpoints and its numbers."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from graftline.stages.errors import StoreFailed

Log = Callable[..., None]
STATE = "state.json"
TENSORS = "state.safetensors"
"""A checkpoint's files. A folder is complete when it has the tensors: a store that copies it sends them last."""


class Reporter(Protocol):
    """What the loop reports to. Every worker calls it; one of them writes."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest complete checkpoint's folder, while the context is open."""

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint after so many steps; `write` fills a folder."""

    def log(self, step: int, **numbers: float) -> None:
        """Numbers of a step. A resumed run says those after its checkpoint again."""

    def progress(self, done: int, total: int, **numbers: float) -> None:
        """How far it is."""


class FolderReporter:
    """Checkpoints in a local folder, each complete or not there: written beside, flushed to disk, renamed.

    Args:
        folder: where they go; it outlives a kill.
        log: takes (step, **numbers).
        progress: takes (done, total, **numbers).
    """

    def __init__(self, folder: Path, log: Log, progress: Log) -> None:
        self.folder, self.log, self.progress = folder, log, progress

    @contextlib.contextmanager
    def latest(self) -> Iterator[Path | None]:
        yield max((found.parent for found in self.folder.glob(f"step-*/{TENSORS}")), default=None)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        target, partial = self.folder / f"step-{step:09d}", self.folder / "partial"
        with writing(target):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            for path in (*partial.iterdir(), partial):
                flush(path)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            flush(self.folder)
        for old in sorted(self.folder.glob("step-*"))[:-1]:
            shutil.rmtree(old)


class RayReporter:
    """Checkpoints and numbers of a Ray Train worker.

    `ray.train.report` keeps metrics only beside checkpoints and repeats them after a failure, so the numbers go to the
    stage's own log, by step.

    Args:
        rank: the worker's; the first one writes.
        log: takes (step, **numbers).
        progress: takes (done, total, **numbers).
    """

    def __init__(self, rank: int, log: Log, progress: Log) -> None:
        self.rank = rank
        self._log, self._progress = log, progress

    @contextlib.contextmanager
    def latest(self) -> Iterator[Path | None]:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        import tempfile

        import ray.train

        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                write(Path(folder))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": step}, checkpoint=checkpoint)

    def log(self, step: int, **numbers: float) -> None:
        if self.rank == 0:
            self._log(step, **numbers)

    def progress(self, done: int, total: int, **numbers: float) -> None:
        if self.rank == 0:
            self._progress(done, total, **numbers)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns a full disk or a lost folder into `StoreFailed`; safetensors has an exception of its own for them."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreFailed(f"cannot write: {error}", where=str(target), do="free some space, then run again") from error


def flush(path: Path) -> None:
    """Force a file's or a folder's content to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
