"""A file to read, and what reading it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from graftline.stages.expected import Given, Volume
from graftline.stages.shapes import Made
from graftline.stages.stage import Context


@dataclass
class Folder:
    """A context that knows where relative paths count from, and no more."""

    path: Path

    def file(self, path: str) -> str:
        return str(self.path / path)

    def write(self, name: str, content: str | bytes) -> str:
        """Writes a file; answers with its relative path."""
        place = self.path / name
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def read(self, source: Any) -> list[Made]:
        context: Context = self  # type: ignore[assignment]
        return list(source.make_rows(context))

    def expected(self, source: Any) -> Volume:
        """The rows a plan expects of it."""
        found: Volume = source.expected(Given(file=self.file)).rows
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def outcomes() -> Callable[[list[Made]], list[tuple[str, str]]]:
    """(source, reason) of each row, "" for the kept ones."""
    return lambda made: [(each.row["source"].rpartition(":")[2], each.reason) for each in made]
