"""Rules that a written text must keep before it is compared with others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import punctuation

LEAST_WORDS, MOST_WORDS = 4, 150


def phrases(forbidden: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the phrases as whole words ("file" is not in "filed")."""
    found = "|".join(re.escape(" ".join(phrase.lower().split())) for phrase in forbidden if phrase.strip())
    return re.compile(rf"(?<!\w)(?:{found})(?!\w)") if found else None


def broken_rule(
    text: str, answer: str, request: str, shown: Sequence[str], forbidden: re.Pattern[str] | None = None
) -> str:
    """The rule that a text breaks, or "".

    Args:
        text: on one line.
        answer: what it is to be the input of.
        request: what the teacher was asked.
        shown: the examples the teacher saw.
        forbidden: from `phrases`.
    """
    folded, label = text.casefold(), answer.casefold()
    count = len(text.split())
    if not text:
        return "is empty"
    if "\x00" in text or "\ufffd" in text:
        return "has broken characters"
    if folded.rstrip(".!?") == label:
        return "is the same as its answer"
    if count < LEAST_WORDS:
        return f"has fewer than {LEAST_WORDS} words"
    if count > MOST_WORDS:
        return f"has more than {MOST_WORDS} words"
    if text[0] in punctuation or not text[0].isascii():
        return "starts with punctuation or a non-ASCII character"
    if text.endswith(":"):
        return "ends with a colon"
    if request.casefold() in folded or folded.startswith(f"{label}:"):
        return "repeats the request"
    if any(example.casefold() in folded for example in shown):
        return "repeats an example"
    if forbidden is not None and forbidden.search(folded):
        return "has a forbidden phrase"
    return ""


def broken_instruction(text: str, forbidden: re.Pattern[str] | None = None) -> str:
    """The rule that an instruction breaks, or "".

    Args:
        text: on one line.
        forbidden: from `phrases`: what a text model cannot do.
    """
    count = len(text.split())
    if "\x00" in text or "\ufffd" in text:
        return "has broken characters"
    if count < LEAST_WORDS:
        return f"has fewer than {LEAST_WORDS} words"
    if count > MOST_WORDS:
        return f"has more than {MOST_WORDS} words"
    if text[0] in punctuation or not text[0].isascii():
        return "starts with punctuation or a non-ASCII character"
    if text.casefold().startswith("write a program"):
        return "asks for a program"
    if forbidden is not None and forbidden.search(text.casefold()):
        return "has a forbidden phrase"
    return ""
