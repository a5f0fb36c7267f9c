"""Verify: 1, 0 or missing, by any check, against any column."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages.errors import EngineFailed, InvalidField, MissingColumn
from graftline.stages.score import Choice, JsonSchema, Verify
from graftline.stages.score.check import Check, Checked

from .conftest import talk

ROWS = [
    {"id": "a", "messages": talk("2 + 1?", "It is 3."), "gold": "3"},
    {"id": "b", "messages": talk("2 + 1?", "It is 13."), "gold": "3"},
    {"id": "c", "messages": talk("2 + 1?"), "gold": "3"},
    {"id": "d", "messages": [], "gold": "3"},
    {"id": "e", "messages": talk("2 + 1?", "3"), "gold": None},
    {"id": "f", "messages": talk("2 + 1?", "dunno"), "gold": "3"},
]


def test_right_wrong_or_missing_and_why(given_rows: Any, table: Any) -> None:
    stage = Verify(rows=given_rows(has={"gold": "string"}), against="gold")
    found = stage.score_rows(table(ROWS, gold="string"), None)
    assert found["verified"] == [1, 0, None, None, None, 0]
    assert found["verified_why"] == [
        None, "13 is not 3", "has no response", "has no response", "has no reference", "gives no number",
    ]  # fmt: skip
    assert stage.columns["verified"] == "int64"


def test_columns_may_change_places(given_rows: Any, table: Any) -> None:
    rows = given_rows(has={"gold": "string"})
    stage = Verify(rows=rows, by=Choice(), response="gold", against="answer")
    pairs = [{"id": "a", "answer": "yes", "gold": "Yes."}, {"id": "b", "answer": "no", "gold": "yes"}]
    data = table(pairs, gold="string")
    assert stage.score_rows(data, None)["verified"] == [1, 0]
    with pytest.raises(MissingColumn):
        Verify(rows=given_rows(), against="gold")
    with pytest.raises(MissingColumn):
        Verify(rows=given_rows(has={"gold": "float64"}), against="gold")


def test_a_check_says_whether_it_needs_a_reference(given_rows: Any, table: Any) -> None:
    with pytest.raises(InvalidField, match=r"Verify\.against"):
        Verify(rows=given_rows())
    stage = Verify(rows=given_rows(), by=JsonSchema())
    data = table([{"id": "a", "messages": talk("q", "{}")}, {"id": "b", "messages": talk("q", "{")}])
    assert stage.score_rows(data, None)["verified"] == [1, 0]


class Failing(Check):
    world: bool = False

    def checked(self, response: str, reference: str | None) -> Checked:
        raise EngineFailed("gone") if self.world else ZeroDivisionError("by zero")


def test_a_check_that_fails_is_missing_never_a_number(given_rows: Any, table: Any) -> None:
    data = table([{"id": "a", "messages": talk("q", "1"), "answer": "1"}])
    found = Verify(rows=given_rows(), by=Failing(), against="answer").score_rows(data, None)
    assert found == {"verified": [None], "verified_why": ["the check failed: ZeroDivisionError: by zero"]}
    with pytest.raises(EngineFailed):
        Verify(rows=given_rows(), by=Failing(world=True), against="answer").score_rows(data, None)
