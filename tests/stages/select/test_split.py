"""Groups stay whole, draws depend on groups, shares and seed alone, strata are cut exactly."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField, NothingKept, WrongKind
from graftline.stages.rows import joined
from graftline.stages.select import Concat, Split, TopK
from graftline.stages.select.split import PARTS, allotted, drawn, drawn_by_stratum
from graftline.stages.stage import View

groups = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3, unique=True)
shares = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8)).map(
    lambda each: tuple(part / sum(each) for part in each)
)


@given(
    rows=st.lists(groups, min_size=1, max_size=12),
    more=st.lists(groups, max_size=6),
    shares=shares,
    seed=st.integers(0, 9),
)
def test_appended_rows_move_no_group_they_do_not_join(
    rows: list[list[str]], more: list[list[str]], shares: tuple[float, ...], seed: int
) -> None:
    new = [[f"new-{name}" for name in row] for row in more]
    before, after = joined(rows), joined([*new, *rows])[len(new) :]
    assert [drawn(name, shares, seed) for name in before] == [drawn(name, shares, seed) for name in after]


@given(st.integers(0, 300), shares)
def test_allotted_is_exact_up_to_one(count: int, shares: tuple[float, ...]) -> None:
    given_ = allotted(count, shares)
    assert sum(given_) == count
    assert all(abs(each - count * share) < 1 for each, share in zip(given_, shares, strict=True))
    assert all(each == 0 for each, share in zip(given_, shares, strict=True) if not share)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefghijklmnop"), st.sampled_from("xyz")), max_size=40),
    shares,
    st.integers(0, 9),
)
def test_each_stratum_is_cut_exactly(rows: list[tuple[str, str]], shares: tuple[float, ...], seed: int) -> None:
    values = dict(rows)  # one value a group
    names = list(values)
    parts = drawn_by_stratum(names, list(values.values()), shares, seed)
    for value in "xyz":
        counts = Counter(parts[name] for name in names if values[name] == value)
        assert [counts[part] for part in PARTS] == allotted(sum(counts.values()), shares)


def test_the_shares_hold_on_average_and_the_seed_changes_the_draw() -> None:
    counts = Counter(drawn(f"group/{number}", (0.4, 0.1, 0.5), 3) for number in range(4000))
    assert [counts[part] / 4000 for part in PARTS] == pytest.approx([0.4, 0.1, 0.5], abs=0.03)
    draws = [[drawn(f"group/{number}", (0.5, 0.0, 0.5), seed) for number in range(64)] for seed in range(2)]
    assert draws[0] != draws[1]


def verdicts(split: Split, table: Any, context: Any) -> dict[str, str]:
    found = list(split.select_rows(table, context))
    assert {each.outcome for each in found} == {"kept"}
    assert len(found) == table.num_rows
    return {each.id: each.part for each in found}


def test_a_row_made_from_two_groups_joins_them(given_rows: Any, table: Any, context: Any) -> None:
    seeds = [{"id": f"s{number}"} for number in range(40)]
    made = [{"id": f"m{number}", "group": f"s{number}|s{number + 20}"} for number in range(20)]
    parts = verdicts(Split(rows=given_rows()), table(seeds + made), context)
    for number in range(20):
        assert parts[f"m{number}"] == parts[f"s{number}"] == parts[f"s{number + 20}"]
    assert set(parts.values()) == set(PARTS)


def test_by_keeps_a_columns_values_together_beside_the_groups(given_rows: Any, table: Any, context: Any) -> None:
    rows = [
        {"id": f"r{number:02}", "customer": f"c{number % 15}" if number < 55 else None, "group": f"g{number // 2}"}
        for number in range(60)
    ]
    split = Split(rows=given_rows(has={"customer": "string"}), by="customer", shares=(0.5, 0.0, 0.5))
    parts = verdicts(split, table(rows[:15], customer="string"), context)
    assert len(set(parts.values())) == 2
    together = defaultdict(set)
    for row in rows[:15]:
        together[row["customer"]].add(parts[row["id"]])
        together[row["group"]].add(parts[row["id"]])
    assert all(len(found) == 1 for found in together.values())
    lonely = [{**row, "group": row["id"]} for row in rows]
    parts = verdicts(split, table(lonely, customer="string"), context)
    assert all(parts[f"r{number:02}"] == parts[f"r{number % 15:02}"] for number in range(55))
    assert len({parts[f"r{number}"] for number in range(55, 60)}) == 2, "rows without a value are not one group"


def test_stratified_by_the_answer(given_rows: Any, table: Any, context: Any) -> None:
    rows = [{"id": f"{number:03}", "answer": "abcdefg"[number % 7]} for number in range(154)]
    split = Split(rows=given_rows(), stratify="answer", seed=1)
    parts = verdicts(split, table(rows), context)
    counts = Counter((row["answer"], parts[row["id"]]) for row in rows)
    assert all((counts[a, "train"], counts[a, "dev"], counts[a, "test"]) == (9, 2, 11) for a in "abcdefg")
    assert parts == verdicts(split, table(rows[::-1]), context)
    assert parts != verdicts(split.replace("seed", 2), table(rows), context)


def test_a_part_without_rows_is_said(given_rows: Any, table: Any, context: Any) -> None:
    rows = [{"id": str(number), "answer": str(number)} for number in range(5)]
    with pytest.raises(NothingKept, match=r"the part 'train' got none of 5 groups.*fewer strata"):
        list(Split(rows=given_rows(), stratify="answer").select_rows(table(rows), context))
    with pytest.raises(NothingKept, match=r"got none of 1 groups.*stratify="):
        list(Split(rows=given_rows()).select_rows(table(rows[:1]), context))
    assert len(verdicts(Split(rows=given_rows(), shares=(0.0, 0.0, 1.0)), table(rows), context)) == 5


def test_views_and_fields(given_rows: Any) -> None:
    split = Split(rows=given_rows(has={"stars": "int64"}), stratify="stars")
    assert (split.train, split.dev, split.test) == tuple(View(of=split, part=part) for part in PARTS)
    assert split.test.columns == split.columns == split.rows.columns
    assert Concat(rows=(split.train, split.dev)).kind == "rows"
    with pytest.raises(WrongKind, match="say which"):
        TopK(rows=split, by="stars", k=1)
    for fields, where in (
        ({"shares": (0.5, 0.1, 0.5)}, "Split.shares"),
        ({"shares": (0.5, 0.5)}, "Split.shares.2"),
        ({"shares": (1.5, -0.5, 0.0)}, "Split.shares.0"),
        ({"by": "stars"}, "Split.rows"),
    ):
        with pytest.raises(InvalidField) as caught:
            Split(rows=given_rows(has={"stars": "int64"}), **fields)
        assert caught.value.where.startswith(where), caught.value
    assert dict(split.columns_needed()["rows"]) == {"group": "string", "stars": "any"}
