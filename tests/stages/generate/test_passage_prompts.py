"""What counts as a question, a reference and a grounded answer."""

from __future__ import annotations

import pytest

from graftline.stages.generate.passage_prompts import cited_in, grounding, questions_in
from graftline.stages.generate.questions import Unreadable


def test_questions_of_a_list() -> None:
    text = "Sure, here they are:\n1. Who built it?\n 2) **When was it?**\n- Why? \n"
    text += "Q4: Where, in 1900?\nNo question.\n5. a?"
    assert questions_in(text, False, 9) == ["Who built it?", "When was it?", "Why?", "Where, in 1900?", "a?"]
    assert questions_in(text, False, 2) == ["Who built it?", "When was it?"]
    assert questions_in(text, True, 9)[-1] == "Where, in 1900?", "a list that was cut off loses its last line"
    for none in ("", "1. No question", "Who is it, I ask"):
        with pytest.raises(Unreadable, match="question mark"):
            questions_in(none, False, 3)
    with pytest.raises(Unreadable):
        questions_in("1. Who?", True, 3)


def test_references() -> None:
    assert cited_in("It was Ada [2]. She wrote it [1, 3].", 3) == ("It was Ada. She wrote it.", (1, 2, 3))
    assert cited_in("NOT FOUND", 3) is None is cited_in("The answer was not found [1].", 3)
    long = "The mill was not found for years after the flood had taken the whole valley [1]."
    assert cited_in(long, 1) == (long.replace(" [1]", ""), (1,))
    for text, why in (("It was Ada.", "names no passage"), ("Ada [4].", r"no passage \[4\]"), ("[0] Ada", r"\[0\]"),
                      (" [1]. ", "says nothing")):  # fmt: skip
        with pytest.raises(Unreadable, match=why):
            cited_in(text, 3)


def test_grounding() -> None:
    passages = ["Ada built the mill in 1900.", "It burnt down."]
    assert grounding("Ada built it in 1900", "Who built the mill?", passages) == 1.0
    assert grounding("Bob, in 1901", "Who built the mill?", passages) == pytest.approx(1 / 3)
    assert grounding("The mill", "Who built the mill?", []) == 1.0
