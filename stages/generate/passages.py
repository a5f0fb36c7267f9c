"""Cutting a document into passages, at paragraphs where possible, else at sentences or lines, else between words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")
TABLE = re.compile(r"\t|\|.*\||,.*,.*,")


def cut(text: str, most: int) -> list[str]:
    """Passages of about equal length, of at most so many words (as separated by white space; a text without any is not
    cut). A table is cut between its lines, never inside one that fits."""
    total = len(text.split())
    enough = math.ceil(total / max(1, math.ceil(total / most)))
    passages, current, count = [], "", 0
    for between, piece in _pieces(text.strip(), most):
        words = len(piece.split())
        if current and (count + words > most or count >= enough):
            passages.append(current)
            current, count = "", 0
        current += (between if current else "") + piece
        count += words
    return [*passages, current] if current else passages


def _pieces(text: str, most: int) -> Iterator[tuple[str, str]]:
    """The smallest pieces that stay whole, each with what stands before it."""
    for paragraph in PARAGRAPH.split(text):
        if len(paragraph.split()) <= most:
            if paragraph.strip():
                yield "\n\n", paragraph
            continue
        table = sum(bool(TABLE.search(line)) for line in paragraph.splitlines()) > 1
        before = "\n\n"
        for piece in paragraph.splitlines() if table else SENTENCE.split(paragraph):
            words = piece.split()
            if len(words) <= most:
                if words:
                    yield before, piece
                    before = "\n" if table else " "
                continue
            for start in range(0, len(words), most):
                yield before, " ".join(words[start : start + most])
                before = " "
