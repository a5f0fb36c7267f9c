"""A run's numbers as TensorBoard events: `tensorboard --logdir STORE/runs/ID/tensorboard`."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftline.pipelines.store import Store

FOLDER = "tensorboard"


class Events:
    """Writes a run's events, a folder a stage: as they come into a local store, at the end into a remote one.

    Args:
        store: the store.
        folder: of the run, in it.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self.store, self.name = store, f"{folder}/{FOLDER}"
        self._writers: dict[str, Any] = {}
        self._place: Path | None = None

    def add(self, stage: str, line: Mapping[str, Any], time: float) -> None:
        """A line of a stage's log: its numbers at its `step`; `time` in seconds since the epoch."""
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                self._writer(stage).add_scalar(name, value, line["step"], walltime=time)

    def _writer(self, stage: str) -> Any:
        if stage not in self._writers:
            from tensorboardX import SummaryWriter

            if self._place is None:
                local = self.store.local_path(self.name) if self.store.local else None
                self._place = local or Path(tempfile.mkdtemp(prefix="graftline-events-"))
            folder = re.sub(r"[^A-Za-z0-9._-]+", "-", stage)
            self._writers[stage] = SummaryWriter(str(self._place / folder), flush_secs=2)
        return self._writers[stage]

    def close(self) -> None:
        """Writes what is left."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._place is not None and not self.store.local:
            for path in sorted(self._place.rglob("*")):
                if path.is_file():
                    self.store.upload(path, f"{self.name}/{path.relative_to(self._place).as_posix()}")
            shutil.rmtree(self._place, ignore_errors=True)
        self._place = None
