"""What a stage made, opened for reading: rows as Arrow, a model or adapter as a directory, a report as a mapping."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import StoreFailed

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.fs as fs


@dataclass(frozen=True)
class Artefact:
    """One committed artefact.

    Args:
        manifest: its `artefact.json` (design.md section 10).
        filesystem: the store's `pyarrow.fs` filesystem.
        path: the attempt's folder on that filesystem.
        part: the view it is restricted to ("" = all of it).
        cache: a local folder for copies of remote directories.
        uri: its folder as a URI that other processes can open (of a local store: those of this machine), without user
            and password.
    """

    manifest: dict[str, Any]
    filesystem: fs.FileSystem
    path: str
    part: str = ""
    cache: str = field(default="", compare=False)
    uri: str = field(default="", compare=False)

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def digest(self) -> str:
        """What came out: of a part, that part's rows alone."""
        return str(self.manifest["views"][self.part]["digest"] if self.part else self.manifest["digest"])

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest["metrics"])

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self.manifest["views"][self.part]["rows"] if self.part else self.manifest["rows"]["kept"])

    def view(self, part: str) -> Artefact:
        """The artefact restricted to one part."""
        return replace(self, part=part)

    def files(self, prefix: str) -> list[str]:
        """Paths (on the filesystem) of the listed files below a folder of the artefact; nothing unlisted is read."""
        return [f"{self.path}/{name}" for name in sorted(self.manifest["files"]) if name.startswith(prefix)]

    def dataset(self, outcome: str = "rows") -> ds.Dataset:
        """The rows as an Arrow dataset; `outcome` may also be `filtered` or `failed`."""
        import pyarrow.dataset as ds

        folder = f"{outcome}/{self.part}/" if self.part else f"{outcome}/"
        try:
            return ds.dataset(self.files(folder), filesystem=self.filesystem, format="parquet")
        except (OSError, ValueError) as error:
            raise StoreFailed(
                f"cannot open its {outcome}: {error}", where=self.path, do="run `graftline retry`"
            ) from error

    def rows(self, columns: Sequence[str] | None = None, outcome: str = "rows") -> pa.Table:
        """The rows as one table, sorted by id."""
        table = self.dataset(outcome).to_table(columns=list(dict.fromkeys([*columns, "id"])) if columns else None)
        table = table.sort_by("id")
        return table.select(list(columns)) if columns else table

    def directory(self, name: str = "") -> Path:
        """A local directory with the artefact's files (below `name`): the store's own when it is local, else a copy
        in the cache, made once."""
        import pyarrow.fs as fs

        if isinstance(self.filesystem, fs.LocalFileSystem):
            return Path(self.path) / name
        target = Path(self.cache) / self.manifest["digest"][:32] / name
        done = target / ".complete"
        if not done.exists():
            for path in self.files(f"{name}/" if name else ""):
                local = Path(self.cache) / self.manifest["digest"][:32] / path.removeprefix(f"{self.path}/")
                local.parent.mkdir(parents=True, exist_ok=True)
                partial = local.with_name(f"{local.name}.part")
                fs.copy_files(
                    path, str(partial), source_filesystem=self.filesystem, destination_filesystem=fs.LocalFileSystem()
                )
                partial.replace(local)
            done.parent.mkdir(parents=True, exist_ok=True)
            done.touch()
        return target

    def copy(self, out: Path) -> None:
        """Copy its listed files into a local folder."""
        import pyarrow.fs as fs

        for path in self.files(""):
            target = out / path.removeprefix(f"{self.path}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(
                path, str(target), source_filesystem=self.filesystem, destination_filesystem=fs.LocalFileSystem()
            )

    def json(self, name: str) -> dict[str, Any]:
        """One of its JSON files (`report.json`)."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            loaded: dict[str, Any] = json.loads(stream.read())
        return loaded
