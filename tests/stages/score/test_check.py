"""What a text marks as its answer."""

from __future__ import annotations

import pytest

from graftline.stages.score.check import boxed, marked


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 5\n", "5"), ("#### 4\n#### 5", "5"), (r"\boxed{a{b}c} and more", "a{b}c"),
        (r"\boxed{1} \boxed{2}", "2"),
        ("The answer is 7.", "7."), ("Answer: yes\nreally", "yes"), ("answer = 3", "3"), ("nothing here", None), ("",
        None),
        (r"\boxed{never ends", None), ("#### 1 \\boxed{2}", "1 \\boxed{2}"), ("the answers are 1", None),
    ],
)  # fmt: skip
def test_marked(text: str, answer: str | None) -> None:
    assert marked(text) == answer


def test_an_unbalanced_box_is_none() -> None:
    assert boxed(r"\boxed{{1}") is None
