"""Refinement: each instruction becomes one, unanswered, or there is a reason."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from graftline.stages.generate.questions import NOT_ASKED
from graftline.stages.generate.refine import Refine
from graftline.stages.generate.tagged import tag, tagged
from graftline.stages.rows import schema


@pytest.fixture
def stage(given: Any, teacher: Any) -> Any:
    return lambda **fields: Refine(**{"seeds": given(), "teacher": teacher, **fields})


def clearer(request: Any, number: int) -> str:
    (instruction,) = tagged(request.messages[0]["content"])[:1]
    return "Here: " + tag("answer", f"{instruction} Answer in one sentence, for a customer, and name the reason.")


def test_each_row_becomes_one_without_an_answer(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(clearer)
    refine, seeds = stage(), seed_rows([("Why late?", "rain"), ("Who pays?", None)], system="You help.")
    made = rounds.play(refine, seeds)
    assert [each.outcome for each in made] == ["kept", "kept"]
    for each, seed in zip(made, seeds, strict=True):
        row, (system, question) = each.row, seed["messages"][:2]
        assert row["messages"] == [system, {"role": "user", "content": row["messages"][1]["content"]}]
        assert row["messages"][1]["content"].startswith(question["content"] + " Answer in one")
        assert (row["parents"], row["group"], row["op"]) == ([seed["id"]], seed["group"], "refine")
        assert (row["answer"], row["reference"]) == (None, seed["answer"])
    assert pa.Table.from_pylist([each.row for each in made], schema=schema(refine.columns)).num_rows == 2
    assert "rain" not in rounds.requests[0][0].messages[0]["content"]


@pytest.mark.parametrize(
    ("answer", "outcome", "reason", "rounds"),
    [
        (tag("answer", "Why was my card charged twice for a same month?"), "filtered",
         "is more like its parent than ROUGE-L 0.85", 1),
        (tag("answer", " "), "filtered", "has no word in a-z and 0-9", 1),
        ("Why?", "failed", "nothing in it stands between <answer> and </answer>", 3),
        (tag("answer", "a") + tag("answer", "b"), "failed", "it has several <answer>, and one is asked for", 3),
        (("", "cancelled"), "failed", NOT_ASKED, 1),
    ],
)  # fmt: skip
def test_what_is_no_refinement(
    play: Any, stage: Any, seed_rows: Any, answer: Any, outcome: str, reason: str, rounds: int
) -> None:
    player = play(lambda request, number: answer)
    (made,) = player.play(stage(novelty=0.85, retries=2), seed_rows()[:1])
    assert (made.outcome, made.reason, len(player.requests)) == (outcome, reason, rounds)


def test_without_an_instruction(play: Any, stage: Any, seed_rows: Any) -> None:
    (made,) = play(clearer).play(stage(), seed_rows([(" ", "answer")]))
    assert (made.outcome, made.reason) == ("failed", "has no instruction")


def test_batches_and_order_do_not_matter(play: Any, stage: Any, seed_rows: Any) -> None:
    whole = play(clearer).play(stage(), seed_rows())
    assert play(clearer, 2).play(stage(), seed_rows()[::-1]) == whole and len(whole) == 7


def test_a_plan_is_within_a_factor_of_two(play: Any, stage: Any, seed_rows: Any) -> None:
    told = play(clearer).planned(stage(), seed_rows())
    assert (told.rows.count, told.rows.mark) == (7, "<=") and told.rows.sample[0]["answer"] is None
