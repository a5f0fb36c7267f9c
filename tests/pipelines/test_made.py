import pytest

from graftline.pipelines import made
from graftline.pipelines.artefacts import Artefacts, Identity
from graftline.pipelines.failures import ContractBroken
from graftline.pipelines.made import MadeRows
from graftline.pipelines.parts import Parts, filled
from graftline.pipelines.store import Store
from graftline.stages import Made, Source
from graftline.stages.rows import FIXED, row_id


class Anything(Source):
    """Makes what the test gives."""

    adds = {"score": "float64"}


def text(words, **more):
    return {"messages": [{"role": "user", "content": words}], **more}


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


@pytest.fixture
def take(store):
    def call(rows, inputs=()):
        parts = Parts(store, "attempt")
        made = MadeRows(Anything(), parts, inputs)
        made.take(rows, lambda count: None)
        return made.account, {
            name: parts.read(
                name, {**FIXED, "score": "float64", "reason": "string"} if name != "rows" else Anything().columns
            )
            .sort_by("id")
            .to_pylist()
            for name in ("rows", "filtered", "failed")
        }

    return call


@pytest.fixture
def given_rows(store):
    """An opened input of two rows, of the groups g and h."""
    parts = Parts(store, "input")
    parts.write("rows", filled([text("one", id="a", group="g"), text("two", id="b", group="h")], FIXED))
    manifest = {
        "schema": 1,
        "kind": "rows",
        "fingerprint": "f",
        "digest": "d",
        "files": parts.files,
        "rows": {"kept": 2},
    }
    return Artefacts(store).commit(Identity("In", "f"), "input", manifest)


def test_ids_parents_and_groups_are_filled_in(take):
    account, found = take([Made(text("one")), Made(text("one")), Made(text("two", source="s", score=1.0))])
    content = {"messages": text("one")["messages"]}
    assert {row["id"] for row in found["rows"]} >= {row_id([], content), row_id([], content, 1)}
    assert all(row["group"] == row["id"] and row["parents"] == [] for row in found["rows"])
    assert (account.created, account.kept, account.carried) == (3, 3, 0)


def test_appending_a_row_changes_no_other_id(take):
    short = take([Made(text("one")), Made(text("two"))])[1]["rows"]
    longer = take([Made(text("one")), Made(text("two")), Made(text("three"))])[1]["rows"]
    assert {row["id"] for row in short} < {row["id"] for row in longer}


def test_rows_of_an_input_are_carried_and_children_join_its_groups(take, given_rows):
    rows = [
        Made(text("one", id="a")),
        Made(text("new", parents=["a", "b"])),
        Made(text("two", id="b"), "filtered", "not wanted"),
    ]
    account, found = take(rows, [given_rows])
    assert (account.given, account.carried, account.created, account.kept) == (2, 2, 1, 2)
    assert {row["messages"][0]["content"]: row["group"] for row in found["rows"]} == {"one": "g", "new": "g|h"}
    assert [(row["id"], row["group"], row["reason"]) for row in found["filtered"]] == [("b", "h", "not wanted")]


def test_a_row_its_columns_cannot_hold_has_failed(take):
    account, found = take([Made(text("fine")), Made(text("bad", score="high")), Made({"messages": "no list"})])
    assert account.kept == 1 and account.failed.total() == 2 and len(found["failed"]) == 2
    assert all(row["reason"] for row in found["failed"])
    assert {row["messages"][0]["content"] for row in found["rows"]} == {"fine"}


def test_outcomes_keep_their_reasons(take):
    account, found = take(
        [Made(text("a"), "failed", "no answer"), Made(text("b"), "failed"), Made(text("c"), "filtered")]
    )
    assert account.failed == {"no answer": 1, "failed": 1} and account.filtered == {"filtered": 1}
    assert sorted(row["reason"] for row in found["failed"]) == ["failed", "no answer"]


def test_two_rows_with_one_id_are_refused(take):
    with pytest.raises(ContractBroken, match="two rows with the id 'x'") as caught:
        take([Made(text("one", id="x")), Made(text("two", id="x"))])
    assert caught.value.where == "Anything"
    account, _ = take([Made(text("one", id="x")), Made(text("two", id="x"), "filtered", "twice")])
    assert account.kept == 1


@pytest.mark.parametrize("wrong", [{"messages": []}, Made({}, "dropped")])
def test_what_is_no_made_is_refused(take, wrong):
    with pytest.raises(ContractBroken, match="Yield Made"):
        take([wrong])


def test_many_rows_become_several_parts(store, monkeypatch):
    monkeypatch.setattr(made, "CHUNK", 10)
    parts, told = Parts(store, "many"), []
    rows = MadeRows(Anything(), parts, [])
    rows.take(
        (Made(text(str(number)), *(("filtered", "odd") if number % 2 else ())) for number in range(50)), told.append
    )
    assert len([name for name in parts.files if name.startswith("rows/")]) == 3 and told[-1] == 50
    table = parts.read("rows", Anything().columns)
    assert table.num_rows == rows.account.kept == 25 == rows.account.filtered.total()
