"""The right answer, put into a question as a hint."""

from __future__ import annotations

import re

from graftline.stages.evaluate.text import normalised

CORRECT = "(CORRECT)"
LISTED = re.compile(r"^\s*[(\[]?([A-Za-z0-9]{1,3})\s*[)\].:]\s*(.+?)\s*$")


def hinted(question: str, answer: str) -> tuple[str, str]:
    """A question with a hint, and the hint: of listed choices (`A) …`, one a line) the right one is marked, by its
    label or its whole text, never by a part of it; otherwise the answer follows in parentheses."""
    lines = question.split("\n")
    right = [place for place, line in enumerate(lines) if _names(line, answer)]
    if len(right) == 1:
        lines[right[0]] = f"{lines[right[0]].rstrip()} {CORRECT}"
        return "\n".join(lines), CORRECT
    hint = f"({answer})"
    return f"{question} {hint}", hint


def _names(line: str, answer: str) -> bool:
    listed, wanted = LISTED.match(line), normalised(answer)
    if not listed:
        return False
    label, text = normalised(listed[1]), normalised(listed[2])
    return wanted.strip("()[]") == label or wanted in (text, normalised(line))
