"""Outputs that a model writes between tags, so that what it says around them does not count."""

from __future__ import annotations

import re

from graftline.stages.generate.questions import Unreadable


def tag(name: str, text: str) -> str:
    """A text between tags."""
    return f"<{name}>{text}</{name}>"


def tagged(text: str, name: str = "answer") -> list[str]:
    """The texts between tags; an opening tag that is never closed gives none.

    Raises:
        Unreadable: there is none.
    """
    found = [each.strip() for each in re.findall(rf"<{name}>((?:(?!<{name}>).)*?)</{name}>", text, re.DOTALL)]
    if not found:
        raise Unreadable(f"nothing in it stands between <{name}> and </{name}>")
    return found


def pairs(text: str) -> list[tuple[str, str]]:
    """Instruction and response of each `<answer>` that holds both.

    Raises:
        Unreadable: there is none.
    """
    found = []
    for block in tagged(text):
        try:
            (instruction, *_), (response, *_) = tagged(block, "instruction"), tagged(block, "response")
        except Unreadable:
            continue
        found.append((instruction, response))
    if not found:
        raise Unreadable("no <answer> in it holds both an <instruction> and a <response>")
    return found
