"""One of several answers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from graftline.stages.errors import InvalidField
from graftline.stages.evaluate.text import normalised
from graftline.stages.score.check import Check, Checked, marked

LETTERED = re.compile(r"[(\[]?\s*(?P<label>[A-Za-z0-9]{1,3})\s*[)\].:]+\s*(?P<text>.*)", re.DOTALL)


class Choice(Check):
    """The response names the reference's choice, by its label or by its text; never by merely containing it.

    The response's choice is the one it marks (`#### B`, `\\boxed{B}`, "the answer is (B)"), else the whole response.
    `B`, `(B)`, `B.` and `B) Paris` name a label. Texts are equal up to case, outer space and final punctuation.

    Args:
        choices: label → text (`{"A": "Rome", "B": "Paris"}`); a label then equals its text, and what names no choice
            is wrong. Empty: response and reference are compared as they stand.

    The property its test checks: labels and texts match, words that only contain one do not.
    """

    method = "score.verify.choice"
    papers = ()
    origin = "whole-answer match of a label or its text; no paper"

    choices: Mapping[str, str] = {}

    def check(self) -> None:
        for names in (list(self.choices), list(self.choices.values())):
            if len({normalised(name) for name in names}) < len(names) or not all(map(str.strip, names)):
                raise InvalidField(
                    "two choices are the same, or one is empty", where="Choice.choices", do="give each once"
                )

    def checked(self, response: str, reference: str | None) -> Checked:
        if not (reference or "").strip():
            return Checked(None, "has no reference")
        wanted = self._label(reference or "")
        if wanted is None:
            return Checked(None, "the reference is no choice")
        given = self._label(marked(response) or response)
        if given is None:
            return Checked(0, "names no choice")
        return Checked(int(given == wanted), "" if given == wanted else f"chose {given[:40]}")

    def _label(self, text: str) -> str | None:
        """The choice a text names; without choices, the text itself."""
        whole = normalised(text)
        if not self.choices:
            bare = re.fullmatch(r"[(\[]\s*(.+?)\s*[)\]]", whole)
            return normalised(bare[1]) if bare else whole
        labels = {normalised(label): label for label in self.choices}
        texts = {normalised(content): label for label, content in self.choices.items()}
        if whole in labels or whole in texts:
            return labels.get(whole) or texts[whole]
        if match := LETTERED.fullmatch(text.strip()):
            label, rest = labels.get(normalised(match["label"])), normalised(match["text"])
            if label and (not rest or texts.get(rest) == label):
                return label
        return None
