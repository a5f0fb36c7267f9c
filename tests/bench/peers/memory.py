"""What a process has held, for both sides of a bench: standard library only."""

from __future__ import annotations

from pathlib import Path


def peak_kib() -> int:
    """The most memory this process has held."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
