"""Answers that refuse."""

from __future__ import annotations

from collections.abc import Sequence

from graftline.stages.generate.rules import phrases

REFUSALS = (
    "as an ai", "as a language model", "as a large language model", "i'm sorry, but", "i am sorry, but",
    "i'm sorry, i", "sorry, i can't", "sorry, i cannot", "i apologize, but", "i can't help", "i cannot help",
    "i can't assist", "i cannot assist", "i can't provide", "i cannot provide", "i can't fulfill", "i cannot fulfill",
    "i can't comply", "i cannot comply", "i'm not able to", "i am not able to", "i'm unable to", "i am unable to",
    "unable to assist",
)  # fmt: skip
"""Phrases with which assistants begin to refuse."""
BEGINNING = 160
"""Characters of an answer in which a refusal is looked for."""


def refuses(text: str, refusals: Sequence[str] = REFUSALS) -> bool:
    """Whether a text begins with one of the phrases, found as whole words, in any case and with any apostrophe."""
    refusing = phrases(refusals)
    beginning = " ".join(text[:BEGINNING].replace("’", "'").lower().split())
    return refusing is not None and refusing.search(beginning) is not None
