"""Texts as they are compared."""

from __future__ import annotations

import unicodedata

FINAL = ".,;:!?。、"
"""What ends a sentence. Not every symbol: `C#` and `C` stay two labels. (NFKC has made `！` and `…` into these.)"""


def normalised(text: str) -> str:
    """NFKC, case-folded, without outer space and final punctuation; a text of punctuation alone stays as it is."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()
    end = len(folded)
    while end and (folded[end - 1] in FINAL or folded[end - 1].isspace()):
        end -= 1
    return folded[:end] or folded
