"""Models on the Hub: which commit a name means, and its files. One look-up of five seconds, then the local cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from graftline.stages.errors import ModelNotFound

SECONDS = 5.0
"""How long a look-up may take."""


def pin(name: str, revision: str | None) -> str:
    """Under what a model's commit is recorded in a run's lock."""
    return f"hub:{name}@{revision or 'main'}"


def commit(name: str, revision: str | None) -> str:
    """The commit a name and revision mean now; where the Hub cannot be reached, the one in the local cache.

    Raises:
        ModelNotFound: the Hub has no such model or revision, or it cannot be reached and nothing is cached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = HfApi().model_info(name, revision=revision, timeout=SECONDS).sha
        if found:
            return found
    except GatedRepoError as error:
        raise ModelNotFound(
            "its owner has to grant access", where=name, do="ask for it on the Hub, and log in (hf auth login)"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        what = f"no revision {revision!r}" if isinstance(error, RevisionNotFoundError) else "no such model"
        raise ModelNotFound(
            f"there is {what}: it is no built-in, no directory and not on the Hub", where=name, do="check its name"
        ) from error
    except Exception as error:  # whatever the network does, the cache is asked
        return _cached(name, revision, error).name
    return _cached(name, revision, None).name


def snapshot(name: str, commit: str, patterns: Sequence[str]) -> tuple[Path, float]:
    """The folder of a model's files in the Hub's cache (named by the commit), and the seconds its download took."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    started = time.monotonic()
    disable_progress_bars()
    try:
        folder = snapshot_download(name, revision=commit, allow_patterns=list(patterns))
    except Exception as error:
        raise ModelNotFound(f"cannot be downloaded: {error}", where=name, do="check the network") from error
    finally:
        enable_progress_bars()
    return Path(folder), time.monotonic() - started


def _cached(name: str, revision: str | None, reason: Exception | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception as error:
        raise ModelNotFound(
            "it is no built-in and no directory, the Hub cannot be reached, and it is not in the local cache",
            where=name,
            do=f"name a directory or a built-in, or check the network ({type(reason or error).__name__})",
        ) from (reason or error)
