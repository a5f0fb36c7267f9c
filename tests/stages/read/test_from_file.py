"""What all formats share: ids, groups, templates, limits, and faults of rows and of files."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftline.stages.errors import FileMissing, InvalidField, RequestError
from graftline.stages.expected import SAMPLE, Given, Volume
from graftline.stages.read.jsonl import Jsonl
from graftline.stages.rows import split_groups

TICKETS = [{"text": "It is down again.", "queue": "outage"}, {"text": "Charged twice!", "queue": "billing"}]


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def tickets(path: str, **more: Any) -> Jsonl:
    return Jsonl(path=path, prompt="{text}", answer="{queue}", **more)


def test_a_row_has_all_fixed_columns(folder: Any) -> None:
    made = folder.read(tickets(folder.write("a.jsonl", jsonl(TICKETS)), system="Name the queue."))
    assert made[1].row == {
        "id": made[1].row["id"],
        "parents": [],
        "group": made[1].row["id"],
        "source": "a.jsonl:2",
        "messages": [
            {"role": "system", "content": "Name the queue."},
            {"role": "user", "content": "Charged twice!"},
            {"role": "assistant", "content": "billing"},
        ],
        "answer": "billing",
        "gen": None,
    }
    assert len(made[1].row["id"]) == 32 and set(made[1].row) == set(tickets("a.jsonl").columns)


def test_prompts_alone_have_no_answer(folder: Any) -> None:
    made = folder.read(Jsonl(path=folder.write("a.jsonl", jsonl(TICKETS)), prompt="{queue}: {text}"))
    assert made[0].row["answer"] is None
    assert made[0].row["messages"] == [{"role": "user", "content": "outage: It is down again."}]


def test_preferences_have_their_own_columns(folder: Any) -> None:
    path = folder.write(
        "a.jsonl", jsonl([{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, {"prompt": "x"}])
    )
    source = Jsonl(path=path, shape="preference", system="Be kind.")
    made = folder.read(source)
    assert set(source.columns) == set(made[0].row) == set(made[1].row)
    assert [turn["role"] for turn in made[0].row["prompt"]] == ["system", "user"]
    assert (made[0].row["chosen"], made[0].row["rejected"]) == ("Because.", "No.")
    assert made[1].outcome == "failed" and made[1].row["prompt"] == []


records = st.fixed_dictionaries({"text": st.sampled_from("abc"), "queue": st.sampled_from("xy")})


@given(rows=st.lists(records, min_size=1, max_size=8), more=records, at=st.integers(0, 8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_are_unique_and_an_added_row_changes_no_other(folder: Any, rows: list[Any], more: Any, at: int) -> None:
    before = [each.row["id"] for each in folder.read(tickets(folder.write("a.jsonl", jsonl(rows))))]
    assert len(set(before)) == len(before)
    after = [each.row["id"] for each in folder.read(tickets(folder.write("b.jsonl", jsonl([*rows, more]))))]
    assert after[:-1] == before
    inserted = folder.read(tickets(folder.write("b.jsonl", jsonl([*rows[:at], more, *rows[at:]]))))
    assert {each.row["id"] for each in inserted} == set(after)


def test_failed_rows_have_stable_ids_too(folder: Any) -> None:
    lines = ["{", json.dumps(TICKETS[0]), "{", "[]"]
    before = folder.read(tickets(folder.write("a.jsonl", "\n".join(lines))))
    after = folder.read(tickets(folder.write("b.jsonl", "\n".join([*lines, "{", "null"]))))
    assert len({each.row["id"] for each in after}) == 6
    assert [each.row["id"] for each in after[:4]] == [each.row["id"] for each in before]


def test_groups_and_kept_columns(folder: Any) -> None:
    rows = [
        {**TICKETS[0], "customer": "a|b", "stars": 3, "tags": ["x"]},
        {**TICKETS[1], "customer": 7, "stars": None},
        {**TICKETS[1], "stars": 1},
    ]
    source = tickets(folder.write("a.jsonl", jsonl(rows)), group="customer", keep=("stars", "tags"))
    assert list(source.columns)[-2:] == ["stars", "tags"] and source.columns["stars"] == "string"
    made = folder.read(source)
    assert [each.row["group"] for each in made[:2]] == ["a%7Cb", "7"]
    assert split_groups(made[0].row["group"]) == ("a%7Cb",), "a separator in a value does not join groups"
    assert [(each.row["stars"], each.row["tags"]) for each in made] == [("3", '["x"]'), (None, None), (None, None)]
    assert made[2].outcome == "failed" and "no column 'customer'" in made[2].reason


def test_limit_and_max_bytes(folder: Any, outcomes: Any) -> None:
    path = folder.write("a.jsonl", jsonl([*TICKETS, {"text": "x" * 300, "queue": "long"}, TICKETS[0]]))
    assert len(folder.read(tickets(path, limit=1))) == 1
    assert outcomes(folder.read(tickets(path, max_bytes=200))) == [
        ("1", ""), ("2", ""), ("3", "is longer than max_bytes=200"), ("4", ""),
    ]  # fmt: skip
    with pytest.raises(InvalidField, match=r"Jsonl\.limit"):
        tickets(path, limit=0)


def test_plan_is_told_how_many_rows_there_are(folder: Any) -> None:
    path = folder.write("a.jsonl", jsonl([*TICKETS, *TICKETS]))
    found = folder.expected(tickets(path))
    assert (found.count, found.mark, len(found.sample)) == (2 * len(TICKETS), "", 2 * len(TICKETS))
    assert folder.expected(tickets(path, limit=1)).count == 1
    assert tickets("s3://far/a.jsonl").expected(Given(file=str)).rows == Volume()


def test_a_sample_is_of_rows_that_can_be_read_from_all_over(folder: Any) -> None:
    lines = [{"text": f"text {number}", "queue": "a" if number < 200 else "b"} for number in range(400)]
    found = folder.expected(tickets(folder.write("a.jsonl", jsonl(lines) + "no JSON\n"))).sample
    assert len(found) == SAMPLE and {row["answer"] for row in found} == {"a", "b"} and "id" not in found[0]
    assert found[0]["messages"] == [
        {"role": "user", "content": "text 0"}, {"role": "assistant", "content": "a"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "x"}, "has no column 'queue' (it has text)"),
        ({"text": "x", "queue": None}, "has no value in the column 'queue'"),
        ({"text": "x", "queue": "  "}, "the answer is empty"),
        ({"text": "\n", "queue": "x"}, "the prompt is empty"),
        ({"text": "a\x00b", "queue": "x"}, "has a zero character (NUL)"),
        ({"text": "\ud800", "queue": "x"}, "has characters that are no Unicode (bad UTF-8 or a lone surrogate)"),
    ],
)
def test_a_rows_own_fault_is_its_reason_and_the_rest_goes_on(
    folder: Any, outcomes: Any, row: dict[str, Any], reason: str
) -> None:
    made = folder.read(tickets(folder.write("a.jsonl", jsonl([TICKETS[0], row, TICKETS[1]]))))
    assert outcomes(made) == [("1", ""), ("2", reason), ("3", "")]
    assert made[1].row["messages"] == [] and made[1].row["group"] == made[1].row["id"]


def test_a_fault_of_the_whole_file_is_the_requests(folder: Any) -> None:
    unlabelled = folder.write("a.jsonl", jsonl([{"text": "x"}, {"text": "y"}]))
    reason = r"Jsonl\('a.jsonl'\): no row can be read; the first is a.jsonl:1: has no column 'queue' \(it has text\)"
    blank = folder.write("b.jsonl", "\n \n")
    good = folder.write("c.jsonl", jsonl(TICKETS))
    for source, kind, what in (
        (tickets(unlabelled), RequestError, reason),
        (tickets(blank), RequestError, "has no rows"),
        (Jsonl(path=good), RequestError, "none of the known shapes"),
        (tickets(good, keep=("stars",)), RequestError, "no row has the column 'stars'"),
        (tickets("none.jsonl"), FileMissing, "no such file"),
        (tickets("."), FileMissing, "a folder"),
    ):
        with pytest.raises(kind, match=what):
            folder.read(source)
        with pytest.raises(kind, match=what):
            source.preflight(folder.file)


def test_preflight_stops_at_the_first_good_row(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder.write("a.jsonl", jsonl([{"text": "no label"}, *TICKETS * 50, {"text": "no label"}]))
    read: list[int] = []
    records = Jsonl.records

    def counted(self: Jsonl, place: str) -> Any:
        for record in records(self, place):
            read.append(record.number)
            yield record

    monkeypatch.setattr(Jsonl, "records", counted)
    tickets(path).preflight(folder.file)
    assert read == [1, 2]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"answer": "{queue}"}, "Jsonl.answer"),
        ({"prompt": "text"}, "Jsonl.prompt"),
        ({"prompt": "{text!r}"}, "Jsonl.prompt"),
        ({"prompt": "{text}", "shape": "alpaca"}, "Jsonl.shape"),
        ({"shape": "csv"}, "Jsonl.shape"),
        ({"keep": ("answer",)}, "Jsonl.keep.0"),
        ({"keep": ("a", "a")}, "Jsonl.keep.1"),
        ({"label_column": "x"}, "Jsonl.label_column"),
    ],
)
def test_fields_that_do_not_fit_are_refused_at_once(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidField) as caught:
        Jsonl(path="a.jsonl", **fields)
    assert caught.value.where == where


def test_the_fingerprint_has_the_content_not_the_path() -> None:
    class Contents:
        def file(self, path: str) -> str:
            return "the same"

    assert Jsonl(path="a.jsonl").pins(Contents()) == Jsonl(path="b.jsonl").pins(Contents()) == {"path": "the same"}  # type: ignore[arg-type]
