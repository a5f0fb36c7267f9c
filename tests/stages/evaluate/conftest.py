"""An engine that answers from a table, and a context that hands it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from graftline.stages.artefact import Artefact
from graftline.stages.errors import PromptTooLong, RowFault
from graftline.stages.lm.engine import Answer, Request
from graftline.stages.rows import schema


class TableEngine:
    """Answers `(adapter, last user text) -> (text, finish)`, scores choices by `(adapter, text, choice) -> number`,
    and keeps what it was asked."""

    model, digest, reproducible, why = "table", "d" * 64, True, ""

    def __init__(self, answers: Mapping[Any, tuple[str, str]], scores: Callable[[Any, str, str], float]) -> None:
        self.answers, self.scores = answers, scores
        self.requests: list[Request] = []
        self.scored: list[tuple[Any, ...]] = []

    def generate(self, requests: Sequence[Request], on_answer: Any = None) -> list[Answer]:
        for request in requests:
            self._check(request.messages)
        found = []
        for request in requests:
            self.requests.append(request)
            text, finish = self.answers[request.adapter, request.messages[-1]["content"]]
            found.append(Answer(request.id, text, finish, 5, 2))
            if on_answer:
                on_answer(found[-1])
        return found

    def choice_logprobs(self, prompts: Any, choices: Any, adapter: str | None = None) -> list[list[float]]:
        for prompt in prompts:
            self._check(prompt)
        self.scored += [
            (adapter, prompt[-1]["content"], tuple(row)) for prompt, row in zip(prompts, choices, strict=True)
        ]
        return [
            [self.scores(adapter, prompt[-1]["content"], choice) for choice in row]
            for prompt, row in zip(prompts, choices, strict=True)
        ]

    def _check(self, messages: Sequence[Mapping[str, str]]) -> None:
        if messages[-1]["content"] == "too long":
            raise PromptTooLong("5000 tokens")
        if messages[-1]["content"] == "marks":
            raise RowFault("holds <|im_end|>")


class OneEngine:
    """A context that opens one engine (or one a model stage) and keeps what it was told."""

    def __init__(self, engines: Any, scratch: Path) -> None:
        self.engines, self.scratch = engines, scratch
        self.opened_with: list[Any] = []
        self.shown: list[tuple[int, int, dict[str, float]]] = []

    @contextmanager
    def engine(self, model: Any, adapters: Mapping[str, Any] | None = None) -> Iterator[Any]:
        self.opened_with.append((model, dict(adapters or {})))
        yield self.engines[model.key] if isinstance(self.engines, dict) else self.engines

    def progress(self, done: int, total: int, **numbers: float) -> None:
        self.shown.append((done, total, numbers))


@pytest.fixture
def table_engine() -> type[TableEngine]:
    return TableEngine


@pytest.fixture
def one_engine() -> type[OneEngine]:
    return OneEngine


@pytest.fixture
def rows() -> Callable[[Sequence[Mapping[str, Any]]], pa.Table]:
    """A table of rows from `{id, text, answer, group?, parents?}`."""

    def make(given: Sequence[Mapping[str, Any]]) -> pa.Table:
        columns = {
            "id": "string", "parents": "list<string>", "group": "string", "messages": "messages", "answer": "string",
        }  # fmt: skip
        made = []
        for row in given:
            turns = [{"role": "user", "content": row["text"]}]
            if row["answer"] is not None:
                turns.append({"role": "assistant", "content": row["answer"]})
            parents, group = row.get("parents", []), row.get("group", row["id"])
            made.append(
                {"id": row["id"], "parents": parents, "group": group, "messages": turns, "answer": row["answer"]}
            )
        return pa.Table.from_pylist(made, schema=schema(columns))

    return make


@pytest.fixture
def artefact(tmp_path: Path) -> Callable[..., Artefact]:
    """A committed artefact of some kind, with rows, or with the rows it was trained on."""

    def make(name: str, rows: pa.Table | None = None, trained_on: pa.Table | None = None) -> Artefact:
        folder, files = tmp_path / name, {}
        folder.mkdir()
        for file, table in (("rows/part-0.parquet", rows), ("trained_on.parquet", trained_on)):
            if table is not None:
                (folder / file).parent.mkdir(exist_ok=True)
                pq.write_table(table, folder / file)
                files[file] = {}
        manifest = {"digest": f"{name}-digest", "files": files, "metrics": {}, "kind": "rows" if rows else "adapter"}
        return Artefact(manifest, fs.LocalFileSystem(), str(folder))

    return make
