"""Prompts of three kinds as vectors, and rows of them as artefacts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graftline.stages.serve.route.tried import Outcomes


@pytest.fixture
def clouds() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Makes vectors around one direction a label, their labels and groups (each row its own)."""

    return _clouds


def _clouds(*sizes: int, width: int = 16, spread: float = 0.3, seed: int = 0) -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.eye(width)[labels] + spread * draw.normal(size=(len(labels), width)) / np.sqrt(width)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors, labels, np.arange(len(labels))


@pytest.fixture
def outcomes() -> Callable[..., Outcomes]:
    """Makes what three targets did on two clouds of prompts: `cheap` is right on the first alone, `dear` on both, `odd`
    on the second alone; their answers are of 10, 100 and 30 tokens, twice as many in the second."""

    def make(count: int = 60, spread: float = 1.0, seed: int = 0, luck: float = 0.1, width: int = 16) -> Outcomes:
        draw = np.random.default_rng(seed + 100)
        vectors, kind, groups = _clouds(count, count, spread=spread, seed=seed, width=width)
        right = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])[kind]
        quality = np.where(draw.random(right.shape) < luck, 1 - right, right)
        tokens = np.array([10.0, 100.0, 30.0]) * (1 + kind[:, None]) + draw.integers(0, 5, right.shape)
        return Outcomes(vectors, groups, quality, np.full(len(kind), 20.0), tokens)

    return make
