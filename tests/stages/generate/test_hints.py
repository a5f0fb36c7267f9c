"""Hints: the right choice is marked, or the answer follows; a part of a word is no match."""

from __future__ import annotations

import pytest

from graftline.stages.generate.hints import hinted

CHOICES = "Where does bread go?\n(A) bank\n(B) bread box \n(C) river bank"


@pytest.mark.parametrize(
    ("question", "answer", "told", "hint"),
    [
        ("What is 3 + 4?", "7", "What is 3 + 4? (7)", "(7)"),
        (CHOICES, "B", CHOICES.replace("(B) bread box ", "(B) bread box (CORRECT)"), "(CORRECT)"),
        (CHOICES, "(b)", CHOICES.replace("(B) bread box ", "(B) bread box (CORRECT)"), "(CORRECT)"),
        (CHOICES, "Bank", CHOICES.replace("(A) bank", "(A) bank (CORRECT)"), "(CORRECT)"),
        (CHOICES, "(C) river bank.", f"{CHOICES} (CORRECT)", "(CORRECT)"),
        (CHOICES, "box", f"{CHOICES} (box)", "(box)"),
        ("1. Add.\n1. Add.", "1", "1. Add.\n1. Add. (1)", "(1)"),
    ],
)
def test_hints(question: str, answer: str, told: str, hint: str) -> None:
    assert hinted(question, answer) == (told, hint)
