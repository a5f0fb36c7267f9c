"""Where a service finds what it serves: artefacts by URI, checked by digest."""

from __future__ import annotations

import json
from pathlib import Path

from graftline.stages.errors import EngineFailed

BASE = "base"
"""The id under which a service offers its base."""
AUTO = "auto"
"""The id that lets the service's router choose."""
IMPORT_PATH = "graftline.stages.serve.app:build"


def local(uri: str, digest: str, folder: str) -> Path:
    """A local directory with the artefact's files below `folder`: copied to the cache first if it is elsewhere.

    Raises:
        EngineFailed: it is not there, or has another digest.
    """
    import pyarrow.fs as fs

    from graftline.stages.artefact import Artefact
    from graftline.stages.lm.cache import cache_folder

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        with filesystem.open_input_stream(f"{path}/artefact.json") as stream:
            manifest = json.loads(stream.read())
    except (OSError, ValueError) as error:
        raise EngineFailed(f"cannot be opened: {error}", where=uri, do="make the service again") from error
    if manifest["digest"] != digest:
        raise EngineFailed(
            f"has the digest {manifest['digest'][:16]}, not {digest[:16]}", where=uri, do="make the service again"
        )
    return Artefact(manifest, filesystem, path, cache=str(cache_folder() / "served")).directory(folder)
