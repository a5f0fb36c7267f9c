"""The column `embedding`: of what the user says, of each row by itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from graftline.pipelines import run
from graftline.stages import Embedder, methods, read, score
from graftline.stages.lm import tiny_embedder
from graftline.stages.rows import FIXED, arrow_type, schema
from graftline.stages.score.embedding import embedded


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("made")
    (folder / "model").mkdir()
    tiny_embedder.write(folder / "model")
    return SimpleNamespace(opened=lambda stage: SimpleNamespace(directory=lambda name: Path(folder) / name))


def rows(*conversations: Any) -> pa.Table:
    made = [{"id": str(number), "messages": messages} for number, messages in enumerate(conversations)]
    return pa.Table.from_pylist(made, schema=schema({name: FIXED[name] for name in ("id", "messages")}))


def turn(role: str, content: str | None) -> dict[str, Any]:
    return {"role": role, "content": content}


def stage(**fields: Any) -> score.Embedding:
    return score.Embedding(rows=read.Jsonl(path="rows.jsonl"), embedder=Embedder("tiny"), **fields)


def test_the_user_turns_alone_count(context: Any) -> None:
    asked = [turn("user", "my order is late")]
    around = [turn("system", "be kind"), *asked, turn("assistant", "sorry")]
    two = [turn("user", "my order"), turn("assistant", "which"), turn("user", "is late")]
    table = rows(asked, around, two, [turn("user", "no signal")])
    one, other, third, far = stage().score_rows(table, context)["embedding"]
    assert (one == other).all() and (one == third).all() and one @ far < 0.9
    assert (
        np.isclose(np.linalg.norm(one), 1) and pa.array([one], arrow_type("list<float32>"))[0].as_py() == one.tolist()
    )


def test_an_empty_text_is_missing(context: Any) -> None:
    table = rows(
        [turn("user", " ")],
        None,
        [turn("system", "x")],
        [turn("user", None)],
        [turn("user", "hello")],
        [turn("user", "?!")],
    )
    found = stage().score_rows(table, context)["embedding"]
    assert [each is None for each in found] == [True, True, True, True, False, True]
    assert stage().score_rows(rows([]), context)["embedding"] == [None]


def test_who_needs_embeddings_shares_one_stage() -> None:
    source, model = read.Jsonl(path="rows.jsonl"), Embedder("tiny")
    assert embedded(source, model) == {"embedded": score.Embedding(rows=source, embedder=model)}
    assert embedded(score.Embedding(rows=source, embedder=model), model) == {}
    assert methods.suppliers("embedding") == ["score.Embedding"]
    assert score.Embedding(rows=source).embedder == Embedder("minilm-l6")


def test_in_a_run(tmp_path: Path) -> None:
    texts = ("my order is late", "hello", "no signal", "my order is late")
    (tmp_path / "rows.jsonl").write_text("\n".join(f'{{"text": "{text}"}}' for text in texts))
    source = read.Jsonl(path="rows.jsonl", prompt="{text}")
    made = {}
    for size in (1, 256):
        stage = score.Embedding(rows=source, embedder=Embedder("tiny"), batch_size=size)
        here = tmp_path / str(size)
        made[size] = run(stage, str(here), base=tmp_path, address="here")["result"]
    assert made[1].digest == made[256].digest
    table = made[1].rows(["embedding"])
    assert table.schema.field("embedding").type == arrow_type("list<float32>")
    assert [len(vector) for vector in table["embedding"].to_pylist()] == [64] * 4
