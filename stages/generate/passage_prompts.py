"""What a teacher is asked about passages, and how its answers are read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graftline.stages.generate.bm25 import terms
from graftline.stages.generate.questions import Unreadable

POINTING = (
    "the text", "this text", "the passage", "this passage", "the passages", "these passages", "the excerpt",
    "the facts", "these facts", "the given", "mentioned above", "described above", "the above",
    "provided context", "the context",
)  # fmt: skip
"""Phrases that make no sense to someone who does not see the passage."""
ASK = """\
Facts:
{passage}

Write {count} questions that these facts answer, numbered, one a line. Name who or what each question is about, so \
that someone who has never seen the facts understands it."""
ANSWER = """\
{passages}

Question: {question}

Answer from these passages alone, in full sentences. After each sentence name the passage it rests on in brackets, \
such as [1]. If they do not hold the answer, write only: NOT FOUND"""
LIST = re.compile(r"^\s*(?:[-*•]|(?:Q|Question)?\s*\d{1,3}\s*[.):])?\s*(?:\*\*)?(.+?\?)(?:\*\*)?\s*$", re.IGNORECASE)
CITED = re.compile(r"\s*\[\s*(\d{1,3}(?:\s*,\s*\d{1,3})*)\s*\]")


def questions_in(text: str, cut_off: bool, most: int) -> list[str]:
    """The questions of a list, one a line; of a list that was cut off, not the last line.

    Raises:
        Unreadable: there is none.
    """
    lines = text.splitlines()[: -1 if cut_off else None]
    found = [match[1].strip() for line in lines if (match := LIST.match(line))]
    if not found:
        raise Unreadable("no line of it is a question that ends with a question mark")
    return found[:most]


def cited_in(text: str, passages: int) -> tuple[str, tuple[int, ...]] | None:
    """An answer without its references, and the passages it names; None where it says that they hold no answer.

    Raises:
        Unreadable: it names none, or one that is not there, or says nothing else.
    """
    if "not found" in text.lower() and len(text.split()) < 12:
        return None
    numbers = sorted({int(number) for group in CITED.findall(text) for number in group.split(",")})
    if not numbers:
        raise Unreadable("it names no passage in brackets, such as [1]")
    if wrong := [number for number in numbers if not 1 <= number <= passages]:
        raise Unreadable(f"there is no passage [{wrong[0]}]")
    answer = CITED.sub("", text).strip()
    if not terms(answer):
        raise Unreadable("it says nothing beside the passage it names")
    return answer, tuple(numbers)


def grounding(answer: str, question: str, passages: Sequence[str]) -> float:
    """The share of an answer's distinct words, without its question's, that the passages have; 1 where none is left."""
    said = set(terms(answer)) - set(terms(question))
    held = {term for passage in passages for term in terms(passage)}
    return len(said & held) / len(said) if said else 1.0
