"""What a swept field may be: `sweep.grid(4, 8, 16)`, `sweep.log_uniform(1e-5, 1e-3)`, …"""

from __future__ import annotations

from typing import Any

from graftline.stages.sweep.listed import Listed
from graftline.stages.sweep.ranged import Ranged


def grid(*values: Any) -> Listed:
    """These values: numbers, texts, plugs or stages. A grid search takes each; the other searches draw them."""
    return Listed(values=values)


def choice(*values: Any) -> Listed:
    """One of these values: `grid` by the name that random search has for it."""
    return Listed(values=values)


def uniform(low: float, high: float) -> Ranged:
    """A number from `low` up to `high`, each as likely as any other."""
    return Ranged(low=float(low), high=float(high))


def log_uniform(low: float, high: float) -> Ranged:
    """A number from `low` up to `high`, each order of magnitude as likely as any other; for learning rates."""
    return Ranged(low=float(low), high=float(high), log=True)


def integers(low: int, high: int) -> Ranged:
    """A whole number from `low` to `high`, both included."""
    return Ranged(low=float(low), high=float(high), whole=True)
