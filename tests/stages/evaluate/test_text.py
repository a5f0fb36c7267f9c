"""Texts as they are compared: a table of spellings, and what holds for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.evaluate.text import normalised


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("Billing", "billing"),
        ("  billing \n", "billing"),
        ("Billing.", "billing"),
        ("billing . ", "billing"),
        ("billing?!", "billing"),
        ("Billing…", "billing"),
        ("请假。", "请假"),
        ("ＢＩＬＬＩＮＧ！", "billing"),
        ("Straße", "strasse"),
        ("ﬁle\u00a0access", "file access"),
        ("cafe\u0301", "café"),
        ("ΣΑΣ", "σασ"),
        ("U.S. sales", "u.s. sales"),
        ("C#", "c#"),
        ("node.js", "node.js"),
        ('"billing"', '"billing"'),
        ("it's billing, of course", "it's billing, of course"),
        ("", ""),
        (" \n", ""),
        ("?!", "?!"),
        ("3.0.", "3.0"),
    ],
)
def test_the_table(given_, expected):
    assert normalised(given_) == expected


def test_labels_that_differ_by_a_symbol_stay_apart():
    assert len({normalised(label) for label in ("C", "C#", "C++", "c-", "(c)")}) == 5


@given(st.text())
def test_once_is_enough(text):
    once = normalised(text)
    assert normalised(once) == once
    assert normalised(f" {text}\t") == once
