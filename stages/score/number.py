"""A number, or a formula."""

from __future__ import annotations

import re

from graftline.stages.score.arithmetic import fraction, last_fraction, same_formula, same_number
from graftline.stages.score.check import Check, Checked, marked
from graftline.stages.specification import Paper


class Number(Check):
    """The response gives the reference's number: `3`, `3.0`, `$3`, `6/2` and `3 apples` are equal.

    The response's number is the one it marks (`#### 3`, `\\boxed{3}`, "the answer is 3"), else the whole response, else
    the last number in it. Whole numbers are equal or not, others up to one in a million; what is no number is compared
    as a formula, at several points to 24 digits.
    Signs count, units do not; `50 %` equals both 50 and 0.5. Nothing that a model wrote is executed, and what could
    take long (a formula that is long, or grows beyond 700 digits) is not read: such a reference is missing, such a
    response wrong.

    The property its test checks: a table of pairs, right and wrong, and each reference is equal to itself.
    """

    method = "score.verify.number"
    papers = (
        Paper("STaR: Bootstrapping Reasoning With Reasoning"),
        Paper("LLM2LLM: Boosting LLMs with Novel Iterative Data Enhancement"),
        Paper("Learning Math Reasoning from Self-Sampled Correct and Partially-Correct Solutions"),
        Paper("Embedding Self-Correction as an Inherent Ability in Large Language Models for Enhanced Mathematical"
              " Reasoning"),
    )  # fmt: skip

    def checked(self, response: str, reference: str | None) -> Checked:
        wanted = marked(reference or "") or (reference or "").strip()
        number = fraction(wanted)
        if not wanted:
            return Checked(None, "has no reference")
        if number is None and same_formula(wanted, wanted) is None:
            return Checked(None, "the reference is no number and no formula")
        told = marked(response)
        given = response.strip() if told is None else first_said(told)
        if number is not None and (found := fraction(given)) is not None:
            return _verdict(same_number(found, number), f"{_shown(found)} is not {_shown(number)}")
        if (equal := same_formula(given, wanted)) is not None:
            return _verdict(equal, "is another formula")
        if told is None and number is not None and (found := last_fraction(response)) is not None:
            return _verdict(same_number(found, number), f"{_shown(found)} is not {_shown(number)}")
        return Checked(0, "gives no number")


def first_said(text: str) -> str:
    """A marked answer without what it goes on to say: `3, since …`, `about 3 (see above)`, `1 + 2 = 3`."""
    said = re.split(r"[,;.]\s|\s\(|\s(?:because|since|as|so|which|but|and)\s", text, maxsplit=1)[0]
    said = re.sub(r"^(?:about|approximately|roughly|exactly|equal to|[~≈])\s*", "", said.strip(), flags=re.IGNORECASE)
    return said.rpartition("=")[2].strip()


def _verdict(equal: bool, why: str) -> Checked:
    return Checked(1) if equal else Checked(0, why)


def _shown(value: tuple[object, bool]) -> str:
    return f"{str(value[0])[:40]}{' %' if value[1] else ''}"
