"""Lists of tasks, and what kind a task is said to be."""

from __future__ import annotations

import pytest

from graftline.stages.generate.questions import Unreadable
from graftline.stages.generate.tasks import KIND, kind_asked, kind_in, tasks_in


def test_a_list_that_begins_inside_its_first_item() -> None:
    text = " Name three  rivers.\n10. Sort these\nwords.\n\n11) Count to 5.5 in steps."
    assert tasks_in(text, False) == ["Name three rivers.", "Sort these words.", "Count to 5.5 in steps."]
    assert tasks_in(text, True) == ["Name three rivers.", "Sort these words."]
    assert tasks_in("9. Repeats its number.", False) == ["Repeats its number."]
    for none, cut_off in (("", False), ("\n10.\n11. ", False), (" only one", True)):
        with pytest.raises(Unreadable):
            tasks_in(none, cut_off)


def test_the_kind_of_a_task() -> None:
    assert [kind_in(text) for text in ("Yes", "no.", "**Yes**, it is", "No, since yes is none")] == [True, False] * 2
    for neither in ("", "Maybe", "Nobody knows", "Yesterday"):
        with pytest.raises(Unreadable):
            kind_in(neither)
    turns = kind_asked("Do it.")
    assert turns[-1] == {"role": "user", "content": KIND.format("Do it.")}
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4 + ["user"]
    assert {turn["content"] for turn in turns if turn["role"] == "assistant"} == {"Yes", "No"}
