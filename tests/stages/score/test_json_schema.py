"""JSON that fits a schema, with the path to what does not; equality knows keys have no order and 1 is not true."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from graftline.stages.errors import InvalidField
from graftline.stages.score import JsonSchema

TICKET = {
    "type": "object",
    "properties": {"queue": {"enum": ["billing", "delivery"]}, "marks": {"type": "array",
    "items": {"type": "integer"}}},
    "required": ["queue"],
}  # fmt: skip


@pytest.mark.parametrize(
    "response", ['{"queue": "billing"}', ' {"queue":"delivery","marks":[1,2]}\n', '```json\n{"queue": "billing"}\n```']
)
def test_what_fits_is_right(response: str) -> None:
    assert JsonSchema(json_schema=TICKET).checked(response, None).verified == 1


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ('{"queue": "other"}', r"$.queue: 'other' is not one of"),
        ('{"queue": "billing", "marks": [1, "2"]}', "$.marks[1]: '2' is not of type 'integer'"),
        ("{}", "$: 'queue' is a required property"),
        ('{"queue": "billing"', "is no JSON: "),
        ('Sure! {"queue": "billing"}', "is no JSON: "),
        ("", "is no JSON: "),
        ('{"queue": "other", "queue": "billing"}', "is no JSON: an object has a key twice"),
        ('{"queue": "billing", "x": NaN}', "is no JSON: NaN"),
        ("[" * 100_000, "is no JSON: "),
        ('```json\n{"queue": "billing"}\n```\n```\n{}\n```', "is no JSON: "),
    ],
)
def test_what_does_not_fit_is_wrong_and_says_where(response: str, why: str) -> None:
    found = JsonSchema(json_schema=TICKET).checked(response, None)
    assert found.verified == 0
    assert found.why.startswith(why)


@pytest.mark.parametrize(
    ("response", "reference", "verified", "why"),
    [
        ('{"a": 1, "b": [2, 3]}', '{"b": [2, 3], "a": 1.0}', 1, ""),
        ('{"a": 1}', '{"a": true}', 0, "$.a: is not the reference's"),
        ('{"a": {"b": [1, 2]}}', '{"a": {"b": [1, 3]}}', 0, "$.a.b[1]: is not the reference's"),
        ('{"a": [1]}', '{"a": [1, 2]}', 0, "$.a: is not the reference's"),
        ('{"a": 1}', '{"a": 1, "b": null}', 0, "$.b: is not the reference's"),
        ("1", "one", None, "the reference is no JSON"),
        ("1", None, None, "the reference is no JSON"),
    ],
)
def test_equality(response: str, reference: str | None, verified: int | None, why: str) -> None:
    found = JsonSchema(equal=True).checked(response, reference)
    assert (found.verified, found.why) == (verified, why)


def test_a_schema_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidField, match=r"JsonSchema\.json_schema"):
        JsonSchema(json_schema={"type": "no such type"})


def test_references_to_elsewhere_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("looked for the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(InvalidField, match="refers to what is not in it"):
        JsonSchema(json_schema={"$ref": "http://localhost:9/schema.json"}).checked("1", None)
    inside = JsonSchema(json_schema={"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"})
    assert [inside.checked(text, None).verified for text in ("1", '"1"')] == [1, 0]
