"""Rows: ids, groups, digests, types."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.rows import (
    FIXED,
    arrow_type,
    canonical,
    derived_seed,
    group_value,
    join_groups,
    joined,
    row_ids,
    rows_digest,
    schema,
    split_groups,
)


def test_types_have_arrow_types() -> None:
    assert schema(FIXED).names == list(FIXED)
    assert arrow_type("list<string>") == pa.list_(pa.string())
    assert arrow_type("messages").value_type.num_fields == 2
    with pytest.raises(ValueError):
        arrow_type("nonsense")


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=8), st.sampled_from(["a", "d"]))
def test_ids_are_unique_and_appending_changes_no_other(contents: list[str], more: str) -> None:
    ids = row_ids([((), content) for content in contents])
    assert len(set(ids)) == len(ids)
    assert row_ids([((), content) for content in [*contents, more]])[: len(ids)] == ids


def test_a_row_of_other_parents_is_another_row() -> None:
    one, two = row_ids([(("p",), "x"), (("q",), "x")])
    assert one != two


@given(st.lists(st.text(max_size=4), min_size=1, max_size=4))
def test_groups_join_and_split(values: list[str]) -> None:
    groups = [group_value(value) for value in values]
    joined = join_groups(groups)
    assert set(split_groups(joined)) == set(groups)
    assert join_groups([joined, joined]) == joined


def test_the_digest_ignores_order_and_sees_values() -> None:
    one = pa.table({"id": ["a", "b"], "x": [1.0, None]})
    assert rows_digest(one) == rows_digest(pa.table({"x": [None, 1.0], "id": ["b", "a"]}))
    assert rows_digest(one) != rows_digest(pa.table({"id": ["a", "b"], "x": [1.0, 2.0]}))
    assert rows_digest(one) != rows_digest(pa.table({"id": ["a", "b"], "y": [1.0, None]}))


def test_vectors_enter_the_digest_by_their_numbers() -> None:
    def of(*vectors: list[float] | None) -> str:
        column = pa.chunked_array([pa.array([each], pa.list_(pa.float32())) for each in vectors])
        return rows_digest(pa.table({"id": [str(number) for number in range(len(vectors))], "x": column}))

    assert of([0.1, 2.0], None) == of([0.1, 2.0], None)
    found = {of(*each) for each in (([0.1, 2.0],), ([2.0, 0.1],), ([0.1],), ([],), (None,), ([0.1, float("nan")],),
                                    ([0.1], [2.0]), ([0.1, 2.0], []))}  # fmt: skip
    assert len(found) == 8
    whole = pa.table({"id": ["a", "b"], "x": pa.array([[1.0], [2.0]], pa.list_(pa.float32()))})
    assert rows_digest(whole.slice(1)) == rows_digest(whole.filter([False, True])), "not by its place in a buffer"


def test_large_contents_enter_the_digest_by_their_own() -> None:
    def of(*contents: bytes | None) -> str:
        ids = [str(number) for number in range(len(contents))]
        return rows_digest(pa.table({"id": ids, "x": pa.array(contents, pa.large_binary())}))

    assert len({of(*each) for each in ((b"a", b"b"), (b"b", b"a"), (b"ab", b""), (b"ab", None), (None, None))}) == 5
    whole = pa.table({"id": ["a", "b"], "x": pa.array([b"a", b"b"], pa.large_binary())})
    assert rows_digest(whole.slice(1)) == rows_digest(whole.filter([False, True])), "not by its place in a buffer"


def test_canonical_takes_anything_a_row_can_hold() -> None:
    assert canonical(float("nan")) != canonical(float("inf")) != canonical(None)
    assert canonical("\ud800") and canonical({"b": 1, "a": [b"x"]}) == '{"a":[{"bytes":"78"}],"b":1}'


def test_seeds_depend_on_each_part() -> None:
    seeds = {derived_seed(s, r, a) for s in (0, 1) for r in ("x", "y") for a in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)


@given(st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3, unique=True), max_size=12))
def test_rows_are_joined_exactly_where_a_chain_of_shared_groups_leads(rows: list[list[str]]) -> None:
    names = joined(rows)
    reached = [set(row) for row in rows]
    for _ in rows:  # the slow way: grow each set by every set it meets
        reached = [set().union(*(other for other in reached if other & mine)) for mine in reached]
    for mine, name in zip(reached, names, strict=True):
        assert name == min(mine)
