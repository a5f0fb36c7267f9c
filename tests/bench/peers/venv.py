"""Virtual environments of the peers: each made once from the pinned `<name>.txt` beside this file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graftline" / "peers"
"""Never in the repository: an environment is about a gigabyte."""


def python_of(name: str, directory: Path = DEFAULT) -> Path:
    """The python that has a peer's requirements, installed where it was not.

    Args:
        name: of the requirements file.
        directory: where the environments are; one whose requirements have changed is made anew.

    Raises:
        CalledProcessError: they do not install; what pip says is on stderr.
    """
    wanted = HERE / f"{name}.txt"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    place = Path(directory).resolve() / name
    python, done = place / "bin" / "python", place / "requirements.sha256"
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_suffix(".lock"), "w") as lock:  # two benches may ask at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done.is_file() and done.read_text() == digest):
            shutil.rmtree(place, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(wanted)]
            subprocess.run(install, check=True, stdout=sys.stderr)
            done.write_text(digest)
    return python
