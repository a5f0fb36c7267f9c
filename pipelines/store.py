"""The store: files below one place on any `pyarrow.fs` filesystem, each written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from graftline.stages.errors import StoreFailed, StoreRefused

if TYPE_CHECKING:
    import pyarrow.fs as fs

DEFAULT = "graftline-store"
FULL = ("no space left on device", "os error 28", "disk quota exceeded")


class Store:
    """Files below one place. Names are relative, with `/`; nothing is ever unpickled from it.

    A local file is written beside its place, synced and renamed; a remote one is one put.

    Args:
        uri: a local path, or a URI of `pyarrow.fs` (S3 options in its query: `s3://bucket/store?region=…`).
        filesystem: use this filesystem, with `uri` as the path on it.

    Raises:
        StoreRefused: the URI names no filesystem.
    """

    def __init__(self, uri: str, filesystem: fs.FileSystem | None = None) -> None:
        import pyarrow as pa
        import pyarrow.fs as fs

        self.uri = uri
        if filesystem is not None:
            self.filesystem, self.root = filesystem, uri.rstrip("/")
        elif "://" in uri:
            try:
                self.filesystem, root = fs.FileSystem.from_uri(uri)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise StoreRefused(
                    f"cannot be opened: {error}", where=self.shown, do="give a path, or a URI such as s3://bucket/store"
                ) from error
            self.root = root.rstrip("/")
        else:
            self.filesystem, self.root = fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
            self.uri = self.root
        self.local = isinstance(self.filesystem, fs.LocalFileSystem)

    @classmethod
    def default(cls, uri: str | None = None) -> Store:
        """The store asked for, else the one GRAFTLINE_STORE names, else `./graftline-store`."""
        return cls(uri or os.environ.get("GRAFTLINE_STORE") or DEFAULT)

    @property
    def shown(self) -> str:
        """The URI without what may be secret in it (user, password, query)."""
        if "://" not in self.uri:
            return self.uri
        parts = urlsplit(self.uri)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def uri_of(self, name: str) -> str:
        """A place in the store as a URI, its options included, without user and password."""
        if "://" not in self.uri:
            scheme = self.filesystem.type_name
            return self.local_path(name).as_uri() if self.local else f"{scheme}://{self.path(name)}"
        parts = urlsplit(self.uri)
        query = f"?{parts.query}" if parts.query else ""
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/{name}{query}"

    def __repr__(self) -> str:
        return f"Store({self.shown!r})"

    def path(self, name: str = "") -> str:
        """The path on the filesystem."""
        return f"{self.root}/{name}" if name else self.root

    def name(self, path: str) -> str:
        """The name of a path on the filesystem."""
        return path.removeprefix(f"{self.root}/")

    def local_path(self, name: str) -> Path:
        """The path of a file in a local store."""
        return Path(self.root) / name

    def writable(self) -> None:
        """Makes the store where it is not there yet, and tries to write to it.

        Raises:
            StoreRefused: it is a file, read-only, full or out of reach.
        """
        probe = f".probe-{secrets.token_hex(4)}"
        try:
            if self.local:
                Path(self.root).mkdir(parents=True, exist_ok=True)
            self._write(probe, b"graftline")
            self.filesystem.delete_file(self.path(probe))
        except OSError as error:
            if isinstance(error, (FileExistsError, NotADirectoryError)):
                what = "is, or lies below, a file that is not a folder"
            elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                what = "is read-only"
            elif is_full(error):
                what = "is on a full disk"
            else:
                what = f"cannot be written: {error}"
            raise StoreRefused(
                f"the store {what}", where=self.shown, do="name another with --store or GRAFTLINE_STORE"
            ) from error

    # --- files ------------------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        return name in self.sizes([name])

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Name → bytes of those that are there as files."""
        try:
            found = self.filesystem.get_file_info([self.path(name) for name in names])
        except OSError as error:
            raise failed("cannot look into the store", self.shown, error) from error
        return {name: int(info.size) for name, info in zip(names, found, strict=True) if info.is_file}

    def list(self, name: str = "", deep: bool = False) -> list[str]:
        """Names below a folder, sorted: its files and, unless `deep`, its folders (with a `/` at the end)."""
        import pyarrow.fs as fs

        try:
            found = self.filesystem.get_file_info(
                fs.FileSelector(self.path(name), recursive=deep, allow_not_found=True)
            )
        except OSError as error:
            raise failed("cannot list it", self.path(name), error) from error
        prefix = f"{name.rstrip('/')}/" if name else ""
        base = f"{self.path(name).rstrip('/')}/"
        return sorted(
            f"{prefix}{info.path.removeprefix(base)}{'' if info.is_file else '/'}"
            for info in found
            if info.is_file or not deep
        )

    def read_bytes(self, name: str) -> bytes:
        """A file's content. Raises `StoreFailed` where it cannot be read."""
        try:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                content: bytes = stream.read()
        except OSError as error:
            raise failed("cannot read it", self.path(name), error) from error
        return content

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file's mapping; None where it is not there, or not whole."""
        if not self.exists(name):
            return None
        try:
            loaded = json.loads(self.read_bytes(name))
        except ValueError:
            return None
        return loaded if isinstance(loaded, dict) else None

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file, replacing it at once. Raises `StoreFailed` (a full disk says so)."""
        try:
            self._write(name, content)
        except OSError as error:
            raise failed("cannot write it", self.path(name), error) from error

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_bytes(name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode())

    def upload(self, local: Path, name: str) -> None:
        """Copies a local file into a remote store."""
        with open(local, "rb") as source:
            try:
                with self._output(name) as stream:
                    while block := source.read(1 << 22):
                        stream.write(block)
            except OSError as error:
                raise failed("cannot write it", self.path(name), error) from error

    def download(self, name: str, local: Path) -> None:
        """Copies a file of the store to a local place."""
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.filesystem.open_input_stream(self.path(name)) as stream, open(local, "wb") as target:
                while block := stream.read(1 << 22):
                    target.write(block)
        except OSError as error:
            raise failed("cannot read it", self.path(name), error) from error

    def delete(self, name: str) -> None:
        """Deletes a file or a folder with all it holds; it may be gone already."""
        import pyarrow.fs as fs

        path = self.path(name.rstrip("/"))
        try:
            (info,) = self.filesystem.get_file_info([path])
            if info.type == fs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif info.is_file:
                self.filesystem.delete_file(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise failed("cannot delete it", path, error) from error

    def _write(self, name: str, content: bytes) -> None:
        if not self.local:
            with self._output(name) as stream:
                stream.write(content)
            return
        target = self.local_path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            with open(partial, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)

    def _output(self, name: str) -> Any:
        try:
            return self.filesystem.open_output_stream(self.path(name))
        except FileNotFoundError:  # a filesystem with real folders
            self.filesystem.create_dir(self.path(name).rpartition("/")[0], recursive=True)
            return self.filesystem.open_output_stream(self.path(name))


def sync_folder(folder: Path) -> None:
    """Makes renames in a local folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, says that the disk is full (libraries say it in their own words)."""
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        if isinstance(inner, OSError) and inner.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(inner).lower() for words in FULL):
            return True
        inner = inner.__cause__ or inner.__context__
    return False


def failed(what: str, where: str, error: BaseException) -> StoreFailed:
    """The error of a read or write that failed."""
    if is_full(error):
        return StoreFailed(
            "the disk is full",
            where=where,
            do="free space, or name another store with --store, and run again: what was committed is kept",
        )
    return StoreFailed(f"{what}: {error}", where=where, do="check that the store is reachable, and run again")
