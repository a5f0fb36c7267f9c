"""Redaction: exact, repeatable, the same for the same value, and nothing that was taken out is kept anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField
from graftline.stages.score import Pii
from graftline.stages.score.personal_data import KINDS

from .conftest import talk

KEY = "0123456789abcdef-secret"
SECRETS = ("jane@mail.org", "+49 30 9018200", "203.12.45.67", "4111 1111 1111 1111")


class Pinned:
    """A context that knows what was pinned."""

    def __init__(self, value: str | None = None) -> None:
        self.value = value

    def pinned(self, name: str) -> str | None:
        return self.value


def mapped(given_rows: Any, data: Any, context: Any = None, **fields: Any) -> list[dict[str, Any]]:
    stage = Pii(rows=given_rows(), **fields)
    return list(stage.map_rows(data, context or Pinned()).to_pylist())


def rows(table: Any) -> Any:
    text = f"I am {SECRETS[0]}, call {SECRETS[1]}. From {SECRETS[2]}, then 198.41.0.4, then {SECRETS[2]}."
    answer = f"Thanks JANE@mail.org! {SECRETS[3]}"
    return table([
        {"id": "a", "messages": talk(text, answer), "answer": answer, "group": "jane@mail.org"},
        {"id": "b", "messages": talk("nothing here", "no"), "answer": "no"},
        {"id": "c", "messages": None, "answer": None},
    ])  # fmt: skip


def test_masks(given_rows: Any, table: Any) -> None:
    first, second, third = mapped(given_rows, rows(table))
    assert [turn["content"] for turn in first["messages"]] == [
        "I am <EMAIL>, call <PHONE>. From 10.0.0.17, then 10.40.3.9, then 10.0.0.17.",
        "Thanks <EMAIL>! <CARD>",
    ]
    assert first["answer"] == "Thanks <EMAIL>! <CARD>"
    assert first["group"] == "jane@mail.org", "no column of texts"
    assert first["pii_count"] == 5 and (second["pii_count"], second["pii"]) == (0, "[]")
    assert second["messages"] == talk("nothing here", "no") and third["messages"] is None


def test_every_column_of_texts_that_our_stages_add_is_looked_at(given_rows: Any, table: Any) -> None:
    said = {name: f"Write to {SECRETS[0]}." for name in ("instruction", "input", "reference")}
    data = table([{"id": "a", "messages": talk("nothing", "here"), **said}], **dict.fromkeys(said, "string"))
    (row,) = mapped(given_rows, data)
    assert {row[name] for name in said} == {"Write to <EMAIL>."} and row["pii_count"] == 1


def test_spans_point_into_the_original_and_hold_no_value(given_rows: Any, table: Any) -> None:
    data = rows(table)
    before, (after, *_) = data.to_pylist()[0], mapped(given_rows, data)
    spans = json.loads(after["pii"])
    values: dict[int, str] = {}
    for span in spans:
        text = before["answer"] if span["column"] == "answer" else before["messages"][span["turn"]]["content"]
        value = text[span["start"] : span["end"]].lower()
        assert values.setdefault(span["value"], value) == value
    assert sorted(values.values()) == sorted([*(each.lower() for each in SECRETS), "198.41.0.4"])
    assert not any(secret in after["pii"] for secret in SECRETS)
    assert set(spans[0]) == {"column", "turn", "kind", "start", "end", "value"}


@given(st.lists(st.sampled_from([*SECRETS, "password: hunter2!", "sk-" + "a1" * 15, "word", ",", "\n"]), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_twice_is_once(given_rows: Any, table: Any, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setenv("PII_KEY", KEY)
    data = table([{"id": "a", "messages": talk(" ".join(words), "ok"), "answer": "ok"}])
    for fields in ({}, {"action": "pseudonym", "key_env": "PII_KEY"}):
        stage = Pii(rows=given_rows(), **fields)
        once = stage.map_rows(data, Pinned())
        again = stage.map_rows(once.drop_columns(["pii", "pii_count"]), Pinned())
        assert again["messages"].to_pylist() == once["messages"].to_pylist()
        assert set(again["pii_count"].to_pylist()) == {0}


def test_pseudonyms_are_stable_for_a_key_and_for_no_other(
    given_rows: Any, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts(key: str) -> list[str]:
        monkeypatch.setenv("PII_KEY", key)
        data = table([{"id": n, "messages": talk(f"{SECRETS[0]} {n}", "x")} for n in "ab"])
        found = mapped(given_rows, data, action="pseudonym", key_env="PII_KEY")
        return [row["messages"][0]["content"].split()[0] for row in found]

    one, other = texts(KEY), texts(KEY[::-1])
    assert one[0] == one[1] != other[0]
    assert one[0].startswith("<EMAIL-") and one == texts(KEY)


def test_a_key_is_needed_long_enough_and_the_planned_one(
    given_rows: Any, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidField, match=r"Pii\.key_env"):
        Pii(rows=given_rows(), action="pseudonym")
    fields = {"action": "pseudonym", "key_env": "PII_KEY"}
    monkeypatch.delenv("PII_KEY", raising=False)
    with pytest.raises(InvalidField, match="PII_KEY is not set"):
        mapped(given_rows, rows(table), **fields)
    monkeypatch.setenv("PII_KEY", "short")
    with pytest.raises(InvalidField, match="too short"):
        mapped(given_rows, rows(table), **fields)

    class Pins:
        def pinned(self, name: str, find: Any) -> str:
            return str(find())

    monkeypatch.setenv("PII_KEY", KEY)
    stage = Pii(rows=given_rows(), **fields)
    planned = stage.pins(Pins())["key_env"]
    assert KEY not in planned and stage.map_rows(rows(table), Pinned(planned)).num_rows == 3
    monkeypatch.setenv("PII_KEY", KEY + "!")
    with pytest.raises(InvalidField, match="another one"):
        stage.map_rows(rows(table), Pinned(planned))
    assert stage.pins(Pins())["key_env"] != planned
    assert Pii(rows=given_rows(), key_env="PII_KEY").pins(Pins()) == {}


def test_dropped_or_reported(given_rows: Any, table: Any) -> None:
    data = rows(table)
    dropped = mapped(given_rows, data, action="drop", kinds=("card", "email"))
    assert [row["filtered"] for row in dropped] == ["has personal data: card, email", None, None]
    (reported, *_) = mapped(given_rows, data, action="report")
    assert reported["messages"] == data.to_pylist()[0]["messages"] and reported["pii_count"] == 5


def test_columns_and_kinds_are_chosen(given_rows: Any, table: Any) -> None:
    (first, *_) = mapped(given_rows, rows(table), texts=("answer",), kinds=("card",))
    assert first["answer"] == "Thanks JANE@mail.org! <CARD>" and first["messages"][0]["content"].startswith("I am jane")
    for wrong in ("gen", "nowhere"):
        with pytest.raises(InvalidField, match=r"Pii\.texts"):
            Pii(rows=given_rows(), texts=(wrong,))
    with pytest.raises(InvalidField, match=r"Pii\.kinds"):
        Pii(rows=given_rows(), kinds=())
    assert len(Pii(rows=given_rows()).kinds) == len(KINDS)


def test_the_batch_does_not_matter(given_rows: Any, table: Any) -> None:
    data = rows(table)
    whole = mapped(given_rows, data)
    assert [mapped(given_rows, data.slice(index, 1))[0] for index in range(3)] == whole
