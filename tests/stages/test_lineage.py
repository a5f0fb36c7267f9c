import pyarrow as pa
import pytest

from graftline.stages.errors import HeldOutLeak
from graftline.stages.lineage import refuse_leak, together
from graftline.stages.rows import join_groups


def table(*rows):
    return pa.table(
        {
            "id": pa.array([row[0] for row in rows], pa.string()),
            "parents": pa.array([row[1] for row in rows], pa.list_(pa.string())),
            "group": pa.array([row[2] for row in rows], pa.string()),
        }
    )


HELD = table(("h1", [], "h1"), ("h2", ["t9"], join_groups(["h2", "h3"])))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("h1", [], "other"), "h1 is a held-out row"),
        (("t1", ["t0", "h1"], "t0"), "t1 was made from the held-out row h1"),
        (("t9", [], "t9"), "the held-out rows contain one made from t9"),
        (("t2", [], "h2"), "t2 shares the group h2"),
        (("t3", ["t1"], join_groups(["t1", "h3"])), "t3 shares the group h3"),
    ],
)
def test_each_way_to_leak_is_refused_by_name(row, reason):
    with pytest.raises(HeldOutLeak, match=reason) as error:
        refuse_leak(table(("fine", [], "fine"), row), HELD, where="Train.rows")
    assert str(error.value).startswith("Train.rows: 1 of 2 training rows") and "fine " not in error.value.what


def test_only_some_of_many_rows_are_named():
    rows = [(f"x{index}", ["h1"], "x") for index in range(9)]
    with pytest.raises(HeldOutLeak, match=r"9 of 9 .*x4 .* and 4 more") as error:
        refuse_leak(table(*rows), HELD, where="here")
    assert "x5" not in str(error.value)


def test_rows_apart_pass_whatever_columns_stand_beside():
    train = table(("t1", ["s"], "g|k"), ("t2", None, None)).append_column("more", pa.array([1, 2]))
    refuse_leak(train, HELD, where="here")
    refuse_leak(train.slice(0, 0), HELD, where="here")
    refuse_leak(train, HELD.slice(0, 0), where="here")


def test_what_several_were_trained_on_is_all_their_rows_once():
    parts = [table(("b", ["a"], "g"), ("c", [], "c")), None, table(("a", [], "g"), ("b", ["a"], "g"))]
    found = together(parts)
    assert found["id"].to_pylist() == ["a", "b", "c"] and found["parents"].to_pylist() == [[], ["a"], []]
    assert found.column_names == ["id", "parents", "group"] and together([None]) is None
