"""Refusals are known by how an answer begins."""

from __future__ import annotations

import pytest

from graftline.stages.generate.refusals import BEGINNING, REFUSALS, refuses


@pytest.mark.parametrize("phrase", REFUSALS)
def test_each_phrase_is_found(phrase: str) -> None:
    assert refuses(f"Well. {phrase.upper().replace(chr(39), '’')}\n  so.")


def test_what_is_no_refusal() -> None:
    assert not refuses("As an aid to memory, write it down.")
    assert not refuses("word " * (BEGINNING // 5) + "I'm sorry, but that is it.")
    assert not refuses("I'm sorry, but no.", ()) and not refuses("") and refuses("Nope, sir.", ("nope",))
