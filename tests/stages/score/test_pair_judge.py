"""Both orders are asked, and only agreement counts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from graftline.stages.lm.engine import Request
from graftline.stages.lm.llm import Llm
from graftline.stages.rows import PREFERENCE, schema
from graftline.stages.score import PairJudge
from graftline.stages.score.pair_judge import verdict

from .conftest import Given, talk


class Pairs(Given):
    def columns_made(self) -> Any:
        return PREFERENCE


PAIRS = [("good", "bad"), ("bad", "good"), ("same", "same"), ("good", "broken"), ("first", "first too")]


def pairs(swapped: bool = False) -> pa.Table:
    rows = [
        {"id": str(index), "prompt": talk("q"), "chosen": pair[swapped], "rejected": pair[not swapped]}
        for index, pair in enumerate(PAIRS)
    ]
    return pa.Table.from_pylist(rows, schema=schema(PREFERENCE))


def reply(request: Request) -> str:
    text = request.messages[1]["content"]
    if "broken" in text:
        return "hm"
    if "good" in text:
        return "A" if text.index("good") < text.index("bad") else "Answer B."
    return "A" if "first" in text else "tie"


def test_only_agreement_counts_and_swapping_flips(told: Any) -> None:
    stage = PairJudge(rows=Pairs(), judge=Llm("tiny"))
    context = told(reply)
    found = stage.score_rows(pairs(), context)
    assert found["preferred"] == [1.0, 0.0, 0.5, None, 0.5]
    assert found["preferred_why"] == [
        None, None, None, "no verdict: it is neither A, B nor tie", "the order decided",
    ]  # fmt: skip
    assert len(context.opened.asked) == 2 * len(PAIRS) + 2 * stage.retries
    flipped = stage.score_rows(pairs(swapped=True), told(reply))["preferred"]
    assert flipped == [None if value is None else 1 - value for value in found["preferred"]]


@pytest.mark.parametrize(("text", "value"), [("A", 1), (" b.\n", -1), ("**A**", 1), ("Tie!", 0), ("answer B", -1)])
def test_verdicts(text: str, value: int) -> None:
    assert verdict(text) == value


@pytest.mark.parametrize("text", ["", "A or B", "C", "A is better", "AB"])
def test_no_verdict(text: str) -> None:
    with pytest.raises(ValueError, match="neither A, B nor tie"):
        verdict(text)
