"""A choice is named by its label or its text, never by containing it."""

from __future__ import annotations

import pytest

from graftline.stages.errors import InvalidField
from graftline.stages.score import Choice

CITIES = Choice(choices={"A": "Rome", "B": "Paris", "C": "New Paris"})


@pytest.mark.parametrize(
    ("response", "reference", "verified"),
    [
        ("B", "B", 1), ("b", "B", 1), ("(B)", "B", 1), ("B.", "Paris", 1), ("B) Paris", "B", 1), ("B: paris.", "B", 1),
        (" Paris ", "B", 1), ("paris", "(B)", 1), ("The answer is (B).", "B", 1), (r"thus \boxed{B}", "B", 1),
        ("I think so.\n#### Paris", "B", 1), ("C", "B", 0), ("New Paris", "B", 0), ("Paris is nice", "B", 0),
        ("A or B", "B", 0), ("B) Rome", "B", 0), ("", "B", 0), ("Berlin", "B", 0), ("AB", "B", 0), ("B or not B",
        "A", 0),
        ("B", None, None), ("B", "", None), ("B", "Berlin", None),
    ],
)  # fmt: skip
def test_with_choices(response: str, reference: str | None, verified: int | None) -> None:
    found = CITIES.checked(response, reference)
    assert found.verified == verified
    assert (found.why == "") == (verified == 1)


@pytest.mark.parametrize(
    ("response", "reference", "verified"),
    [
        ("Billing.", "billing", 1), ("(C)", "C", 1), ("billing team", "billing", 0), ("ill", "billing", 0), ("", "x",
        0),
        ("the answer is billing", "billing", 1), ("C#", "C", 0), ("x", " ", None),
    ],
)  # fmt: skip
def test_without_choices_texts_are_compared_whole(response: str, reference: str, verified: int | None) -> None:
    assert Choice().checked(response, reference).verified == verified


def test_choices_are_told_apart() -> None:
    with pytest.raises(InvalidField, match=r"Choice\.choices"):
        Choice(choices={"A": "Rome", "B": " rome. "})
    with pytest.raises(InvalidField, match="empty"):
        Choice(choices={"A": ""})


def test_every_choice_verifies_itself() -> None:
    for label, text in CITIES.choices.items():
        for one in (label, text):
            for other in (label, text, f"{label}) {text}"):
                assert CITIES.checked(other, one).verified == 1
