"""Instances of a task: how a list is read, and the rules of Self-Instruct."""

from __future__ import annotations

import pytest

from graftline.stages.generate.instances import broken_instance, conflicting, instances_in
from graftline.stages.generate.questions import Unreadable

BOTH = "Sure.\n1. Input: one\n two\nOutput: three\n\nExample 2\n**Input:** four\noutput: five\nsix\n3.\nOutput: alone"


def test_input_first() -> None:
    found = [("one\n two", "three"), ("four", "five\nsix"), ("", "alone")]
    assert instances_in(BOTH.replace("1. Input", "Input"), False, False) == found
    assert instances_in(BOTH.replace("1. Input", "Input"), False, True) == found[:-1]
    assert instances_in("Input: whole\nOutput: yes\nInput: begun", False, True) == [("whole", "yes")]
    assert len(instances_in("Output: x\n" * 9, False, False)) == 5
    for none in ("", "a poem", "Input: only that"):
        with pytest.raises(Unreadable, match='no "Input'):
            instances_in(none, False, False)
    with pytest.raises(Unreadable):
        instances_in("Output: cut", False, True)


def test_label_first() -> None:
    text = "Label: good\nInput: I like it.\nClass label: bad\nInput: I do not."
    assert instances_in(text, True, False) == [("I like it.", "good"), ("I do not.", "bad")]
    assert instances_in(text, True, True) == [("I like it.", "good")]
    with pytest.raises(Unreadable, match='no "Label'):
        instances_in("nothing of it", True, False)


def test_rules() -> None:
    assert broken_instance(("a", "")) == "has no output"
    assert broken_instance(("a", "a")) == "has an output that is its input"
    assert broken_instance(("a:", "b")) == broken_instance(("a", "b:")) == "ends with a colon"
    assert broken_instance(("", "b")) == broken_instance(("a", "b")) == ""
    assert conflicting([("a", "b"), ("c", "d"), ("a", "e")])
    assert not conflicting([("", "b"), ("", "c"), ("a", "b"), ("d", "b"), ("a", "b")])
