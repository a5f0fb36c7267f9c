import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.pipelines.failures import ContractBroken, reason
from graftline.pipelines.parts import Parts, conformed, filled, guarded, has_columns, ids_digest, lenient
from graftline.pipelines.store import Store
from graftline.stages.errors import WorldError
from graftline.stages.rows import FIXED

COLUMNS = {"id": "string", "n": "int64"}


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_the_guilty_rows_are_found_and_no_other(guilty):
    table = pa.table({"id": [str(number) for number in range(len(guilty))], "bad": pa.array(guilty, pa.bool_())})

    def function(batch):
        if any(batch["bad"].to_pylist()):
            raise ValueError("a bad row")
        return batch["id"].to_pylist()

    fine, blamed, order = [], [], []
    for batch, result, error in guarded(function, table):
        order += batch["id"].to_pylist()
        if error is not None:
            assert reason(error) == "ValueError: a bad row" and batch.num_rows == 1
            blamed += batch["id"].to_pylist()
        else:
            fine += result
    assert order == table["id"].to_pylist()
    assert blamed == [str(number) for number, bad in enumerate(guilty) if bad]
    assert fine == [str(number) for number, bad in enumerate(guilty) if not bad]


@pytest.mark.parametrize("error", [WorldError("down"), MemoryError(), ContractBroken("wrong")])
def test_the_world_is_no_rows_fault(error):
    def function(batch):
        raise error

    with pytest.raises(type(error)):
        list(guarded(function, pa.table({"id": ["a", "b"]})))


def test_finding_one_guilty_row_takes_few_calls():
    calls = []

    def function(batch):
        calls.append(batch.num_rows)
        if 77 in batch["n"].to_pylist():
            raise ValueError

    assert len(list(guarded(function, pa.table({"n": list(range(256))})))) == 9
    assert len(calls) == 17


def test_dropped_rows_may_hold_what_their_columns_cannot():
    rows = [
        {"id": "a", "n": 1, "reason": "fine"},
        {"id": "b", "n": "not a number", "reason": "ValueError: \ud800"},
        {"id": "c", "n": 2**80, "other": object(), "reason": "too big"},
    ]
    table = lenient(rows, {**COLUMNS, "reason": "string"})
    assert table["n"].to_pylist() == [1, None, None]
    assert table["reason"].to_pylist() == ["fine", "ValueError: ?", "too big"]
    assert lenient([{"id": "a", "messages": "no list"}], FIXED)["messages"].to_pylist() == [None]


def test_casting_loses_nothing():
    assert conformed(pa.table({"n": pa.array([1], pa.int8()), "x": [0], "id": ["a"]}), COLUMNS).column_names == [
        "id",
        "n",
    ]
    with pytest.raises(pa.ArrowInvalid):
        conformed(pa.table({"id": ["a"], "n": [1.5]}), COLUMNS)
    with pytest.raises((pa.ArrowInvalid, TypeError)):
        filled([{"id": "a", "n": "x"}], COLUMNS)


def test_what_is_written_is_listed_and_read_back(tmp_path):
    parts = Parts(Store(str(tmp_path)), "artefacts/x/attempt")
    table = filled([{"id": "a", "n": 1}, {"id": "b", "n": 2}], COLUMNS)
    name = parts.write("rows", table)
    assert name == f"rows/part-{ids_digest(['a', 'b'])}.parquet" and parts.write("rows", table) == name
    assert list(parts.files) == [name] and parts.files[name]["rows"] == 2
    assert parts.files[name]["bytes"] == (tmp_path / "artefacts/x/attempt" / name).stat().st_size
    assert parts.read("rows", COLUMNS) == table and parts.read("failed", COLUMNS).num_rows == 0


def test_what_is_no_table_is_refused():
    with pytest.raises(ContractBroken, match="returned dict") as caught:
        has_columns({"id": []}, COLUMNS, "Mine", "map_rows")
    assert caught.value.where == "Mine"
    with pytest.raises(ContractBroken, match="no column 'n'"):
        has_columns(pa.table({"id": ["a"]}), COLUMNS, "Mine", "map_rows")
