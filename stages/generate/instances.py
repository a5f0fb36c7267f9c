"""Instances of a written task: their inputs and outputs, as a model lists them, and the rules they must keep."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from graftline.stages.generate.questions import Unreadable

Instance = tuple[str, str]
"""Input ("" where the task needs none) and output."""
MOST = 5
INPUT_FIRST = """\
Give up to five examples of this task, each with its input and its output:

Task: {instruction}

Write them as "Input: ..." and "Output: ...". If the task needs no input, write one "Output: ..." alone."""
LABEL_FIRST = """\
The answer to this task is one of a few labels. For each label write an input to which it is the right answer:

Task: {instruction}

Write them as "Label: ..." and "Input: ..."."""
FIELD = re.compile(r"^[ \t]*(?:\*\*)?(Input|Output|Label|Class label)(?:\*\*)?[ \t]*:(?:\*\*)?[ \t]*", re.I | re.M)
EXAMPLE = re.compile(r"\n\s*(?:Example|Task)?\s*\d{1,2}\s*[.:)]?\s*$", re.I)


def instances_in(text: str, label_first: bool, cut_off: bool) -> list[Instance]:
    """The instances of a list, at most five; of a list that was cut off, not the last one.

    Raises:
        Unreadable: there is none.
    """
    start, end = ("label", "input") if label_first else ("input", "output")
    found: list[Instance] = []
    before = ""
    for name, value in _fields(text):
        if name == start:
            before = value
        elif name == end:
            found.append((value, before) if label_first else (before, value))
            before = ""
    if cut_off and not before and found:
        found.pop()
    if not found:
        raise Unreadable(f'no "{start.title()}: ..." with an "{end.title()}: ..." is in it')
    return found[:MOST]


def _fields(text: str) -> list[tuple[str, str]]:
    """Name and value of what follows each "Input:", "Output:" or "Label:"."""
    marks = list(FIELD.finditer(text))
    ends = [*(mark.start() for mark in marks), len(text)][1:]
    return [
        (mark[1].lower().split()[-1], EXAMPLE.sub("", text[mark.end() : end].rstrip()).strip())
        for mark, end in zip(marks, ends, strict=True)
    ]


def broken_instance(instance: Instance) -> str:
    """The rule that an instance breaks, or ""."""
    given, output = instance
    if not output:
        return "has no output"
    if given == output:
        return "has an output that is its input"
    if given.endswith(":") or output.endswith(":"):
        return "ends with a colon"
    return ""


def conflicting(instances: Sequence[Instance]) -> bool:
    """Whether one input that is not empty has two outputs."""
    outputs: defaultdict[str, set[str]] = defaultdict(set)
    for given, output in instances:
        if given:
            outputs[given].add(output)
    return any(len(found) > 1 for found in outputs.values())
