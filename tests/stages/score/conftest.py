"""Rows to score, and a context whose engines are real ones of the tiny model, or answer what a test tells them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graftline.stages.lm.engine import Answer, Request
from graftline.stages.rows import FIXED, derived_seed, schema
from graftline.stages.shapes import Source


class Given(Source):
    """Rows that are there, with these columns beside the fixed ones."""

    has: Mapping[str, str] = {}

    def columns_made(self) -> Mapping[str, str]:
        return {**FIXED, **self.has}


class Asking:
    """A context that opens one engine for every model."""

    def __init__(self, engine: Any) -> None:
        self.opened = engine

    @contextlib.contextmanager
    def engine(self, model: Any, adapters: Any = None) -> Iterator[Any]:
        yield self.opened

    def seed(self, row_id: str, attempt: int = 0) -> int:
        return derived_seed(0, row_id, attempt)


class Told:
    """An engine that answers each request with what a function says."""

    model, digest, reproducible, why = "told", "0" * 64, True, ""

    def __init__(self, answer: Callable[[Request], str]) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request], on_answer: Any = None) -> list[Answer]:
        self.asked += requests
        return [Answer(request.id, self.answer(request), "stop", 1, 1) for request in requests]


@pytest.fixture
def given_rows() -> type[Given]:
    return Given


@pytest.fixture
def table() -> Callable[..., pa.Table]:
    """A table of rows given with a few of their columns; `has` names further columns."""

    def make(rows: Sequence[Mapping[str, Any]], **has: str) -> pa.Table:
        whole = [{"parents": [], "group": row["id"], "source": "", "messages": [], **row} for row in rows]
        return pa.Table.from_pylist(whole, schema=schema({**FIXED, **has}))

    return make


@pytest.fixture
def told() -> Callable[[Callable[[Request], str]], Asking]:
    return lambda answer: Asking(Told(answer))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Asking:
    """A context of the tiny model's real log-probabilities."""
    from graftline.stages.lm import tiny as model
    from graftline.stages.lm.llm import Llm
    from graftline.stages.lm.open import open_engine

    directory = Path(tmp_path_factory.mktemp("tiny"))
    model.write(directory)
    return Asking(open_engine(Llm("tiny", engine="generate", dtype="float32"), directory))


def talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages: user and assistant in turn."""
    turns = [{"role": ("user", "assistant")[index % 2], "content": each} for index, each in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]
