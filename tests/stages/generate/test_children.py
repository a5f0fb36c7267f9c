"""Made rows: ids by parents and content, groups joined, the final turn as the answer."""

from __future__ import annotations

from typing import Any

from graftline.stages.generate.children import Children, model_name, prompt_of, question_of
from graftline.stages.rows import row_id

SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_a_row(teacher: Any) -> None:
    children = Children("generate.x", teacher)
    parents = [{"id": "p2", "group": "g2|g1"}, {"id": "p1", "group": None}, {"id": "p2", "group": "g2|g1"}]
    row = children.row(parents, SAID, {"round": 1, "seed": 5}, more=3)
    assert row == {
        "id": row_id(["p1", "p2"], SAID),
        "parents": ["p2", "p1"],
        "group": "g1|g2|p1",
        "source": "generated",
        "messages": SAID,
        "answer": "a",
        "gen": {"stage": "generate.x", "model": "teacher-1", "round": 1, "seed": 5},
        "more": 3,
    }
    again = children.row(parents, SAID, {"round": 2, "seed": 6})
    assert again["id"] == row_id(["p1", "p2"], SAID, 1), "equal rows are numbered"
    assert children.row(parents[1:2], SAID[:1], {})["answer"] is None


def test_prompts_and_questions() -> None:
    system = {"role": "system", "content": "s"}
    more = [system, *SAID, {"role": "user", "content": None}]
    assert prompt_of([system, *SAID]) == (system, SAID[0])
    assert prompt_of(more) == (*more[:-1], {"role": "user", "content": ""})
    assert prompt_of(None) == prompt_of([]) == () and question_of(None) == ""
    assert question_of([system, *SAID]) == "q" and question_of(more) == ""


def test_a_models_name_is_no_matter_of_labels(given: Any, teacher: Any) -> None:
    assert model_name(teacher) == "teacher-1"
    assert model_name(given(label="mine")) == "Given"
