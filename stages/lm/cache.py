"""A folder for what is downloaded and converted once a machine: file-locked, renamed into place."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from graftline.stages.errors import StoreFailed


def cache_folder() -> Path:
    """`GRAFTLINE_CACHE`, else `graftline` in the user's cache folder."""
    if named := os.environ.get("GRAFTLINE_CACHE"):
        return Path(named).expanduser().absolute()
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "graftline"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder of this name. `build` fills it where it is not there yet; processes that ask at the same time
    wait for the first, and a build that fails leaves nothing.

    Raises:
        StoreFailed: the cache folder cannot be written.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f".{target.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                partial = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
                try:
                    build(partial)
                    partial.chmod(0o755)  # mkdtemp's and safetensors' files are their owner's alone
                    for file in partial.rglob("*"):
                        if file.is_file():
                            file.chmod(0o644)
                    partial.rename(target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StoreFailed(
            f"cannot fill the cache: {error}",
            where=str(target),
            do="free space, or set GRAFTLINE_CACHE to another folder",
        ) from error
    return target
