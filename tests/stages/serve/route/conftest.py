"""Prompts of three kinds as vectors, and rows of them as artefacts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def clouds() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Makes vectors around one direction a label, their labels and groups (each row its own)."""

    def make(*sizes: int, width: int = 16, spread: float = 0.3, seed: int = 0) -> tuple[np.ndarray, ...]:
        draw = np.random.default_rng(seed)
        labels = np.repeat(np.arange(len(sizes)), sizes)
        vectors = np.eye(width)[labels] + spread * draw.normal(size=(len(labels), width)) / np.sqrt(width)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return vectors, labels, np.arange(len(labels))

    return make
