"""The peers' own virtual environments: made on first use from a pinned list beside this file, never in the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path.home() / ".cache" / "graftline" / "peers"


def interpreter(name: str, directory: Path = CACHE) -> Path:
    """The Python of the environment with the packages of `<name>.txt`, which is made anew where the list changed."""
    wanted = HERE / f"{name}.txt"
    environment = directory / name
    python, made = environment / "bin" / "python", environment / "made-from.txt"
    if not made.exists() or made.read_bytes() != wanted.read_bytes():
        print(f"installing the packages of {wanted.name} into {environment}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", wanted], check=True)
        made.write_bytes(wanted.read_bytes())
    return python
