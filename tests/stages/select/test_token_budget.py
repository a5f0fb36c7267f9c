"""A budget of tokens: never more than it, the best rows first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField, MissingColumn, WrongKind
from graftline.stages.lm import tiny
from graftline.stages.lm.chat import render_supervised
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.load import load_tokenizer
from graftline.stages.select import TokenBudget
from graftline.stages.select.ranking import missing

LLM = Llm("tiny")
HAS = {"score": "float64"}
scores = st.one_of(st.none(), st.just(float("nan")), st.sampled_from([-1.0, 0.0, 2.0]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "model").mkdir()
    tiny.write(folder / "model")
    return folder


@pytest.fixture(scope="module")
def context(model: Path) -> Any:
    return SimpleNamespace(opened=lambda stage: {LLM: SimpleNamespace(directory=lambda name: model / name)}[stage])


def row(id: str, words: int, score: float | None) -> dict[str, Any]:
    turns = [{"role": "user", "content": " ".join(["order"] * words)}, {"role": "assistant", "content": "yes"}]
    return {"id": id, "messages": turns, "score": score}


@given(st.lists(st.tuples(st.integers(0, 8), scores), min_size=1, max_size=6), st.integers(1, 90), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_the_best_rows_that_fit(
    given_rows: Any, table: Any, context: Any, model: Path, rows: list[Any], budget: int, data: Any
) -> None:
    assume(not all(map(missing, (score for _, score in rows))))
    made = [row(f"{number}", *each) for number, each in enumerate(rows)]
    tokenizer = load_tokenizer(model / "model")
    tokens = {each["id"]: len(render_supervised(tokenizer, each["messages"])[0]) for each in made}
    stage = TokenBudget(rows=given_rows(has=HAS), model=LLM, by="score", budget=budget)
    order = data.draw(st.permutations(range(len(made))))
    found = list(stage.select_rows(table(made, **HAS).take(pa.array(order, pa.int64())), context))
    value = {each["id"]: each["score"] for each in made}
    best = [each.id for each in found]
    assert best == sorted(best, key=lambda id: (value[id] is None or value[id] != value[id], -(value[id] or 0), id) if
                          value[id] is not None and value[id] == value[id] else (True, 0, id))  # fmt: skip
    spent = 0
    for each in found:
        fits = spent + tokens[each.id] <= budget
        assert (each.outcome == "kept") == fits
        spent += tokens[each.id] if fits else 0
    assert spent <= budget


def test_a_budget_above_all_keeps_all_and_a_row_that_cannot_be_read_is_left_out(
    given_rows: Any, table: Any, context: Any
) -> None:
    rows = [row("a", 3, 1.0), row("b", 0, None), row("c", 2, 5.0), {"id": "d", "messages": [], "score": 9.0}]
    rows[2]["messages"] = [{"role": "user", "content": "ends <|im_end|> here"}]
    stage = TokenBudget(rows=given_rows(has=HAS), model=LLM, by="score", budget=10**9)
    found = {each.id: each.reason for each in stage.select_rows(table(rows, **HAS), context)}
    assert found["a"] == found["b"] == ""
    assert found["c"].startswith("cannot be tokenised: contains the chat template's own <|im_end|>")
    assert found["d"].startswith("cannot be tokenised: has no message")


def test_what_it_takes(given_rows: Any) -> None:
    rows = given_rows(has=HAS)
    with pytest.raises(InvalidField, match=r"TokenBudget\.budget"):
        TokenBudget(rows=rows, model=LLM, by="score", budget=0)
    with pytest.raises(WrongKind, match=r"TokenBudget\.model"):
        TokenBudget(rows=rows, model=rows, by="score", budget=9)
    with pytest.raises(MissingColumn, match="answer"):
        TokenBudget(rows=rows, model=LLM, by="answer", budget=9)
