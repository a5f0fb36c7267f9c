"""The slot of `Verify`: what it takes for an answer to be right."""

from __future__ import annotations

import re
from dataclasses import dataclass

from graftline.stages.specification import Plug

HASHES = re.compile(r"####[ \t]*([^\n]+)")
PHRASE = re.compile(r"\banswer\s*(?:is|:|=)\s*(?::\s*)?([^\n]{1,200})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found.

    Args:
        verified: 1 = right, 0 = wrong, None = it could not tell.
        why: where it is not right, why.
    """

    verified: int | None
    why: str = ""


class Check(Plug):
    """Decides whether a response gives the reference. A check of your own overrides `checked`, a pure function."""

    origin = "the slot of Verify: what a check is derived from, no method"

    @property
    def needs_reference(self) -> bool:
        """Whether it looks at the reference."""
        return True

    def checked(self, response: str, reference: str | None) -> Checked:
        """Whether the response is right. What a response lacks makes it wrong; a reference that is missing or cannot be
        read makes it unknown."""
        raise NotImplementedError(f"{type(self).__name__}.checked")


def marked(text: str) -> str | None:
    """The answer that a text marks as its own: after `####`, in the last `\\boxed{}`, after "the answer is"; None
    where it marks none. Of several, the last of the first kind found."""
    if found := HASHES.findall(text):
        return str(found[-1]).strip()
    if (box := boxed(text)) is not None:
        return box.strip()
    if found := PHRASE.findall(text):
        return str(found[-1]).strip()
    return None


def boxed(text: str) -> str | None:
    """What the last `\\boxed{…}` holds, its braces balanced; None where there is none, or it never ends."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth = 0
    for index in range(start + len(r"\boxed"), len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + len(r"\boxed{") : index]
    return None
