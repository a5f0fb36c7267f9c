"""Two columns on the same rows: the counts add up, and the exact test is the fair coins'."""

import math
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.evaluate.pairs import beyond, compared, mcnemar

VERDICTS = st.lists(st.tuples(st.sampled_from([True, False, None]), st.booleans()), min_size=1, max_size=40)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (4, 9), (9, 4), (30, 12), (700, 640), (0, 2000)])
def test_the_exact_test_is_a_fair_coins(one, other):
    coins = one + other
    tail = Fraction(sum(math.comb(coins, heads) for heads in range(min(one, other) + 1)), 2**coins)
    assert mcnemar(one, other) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)
    assert mcnemar(one, other) == mcnemar(other, one)


@given(VERDICTS)
def test_the_counts_add_up(verdicts):
    first, second = (list(each) for each in zip(*verdicts, strict=True))
    (pair,) = compared({"a": first, "b": second}, range(len(first)))
    known = [each for each in verdicts if None not in each]
    assert pair["columns"] == ["a", "b"] and pair["n"] == len(known)
    assert pair["right"] == [sum(one for one, _ in known), sum(other for _, other in known)]
    assert pair["right"][0] - pair["right"][1] == pair["alone"][0] - pair["alone"][1]
    (turned,) = compared({"b": second, "a": first}, range(len(first)))
    assert turned["p"] == pair["p"] and turned["alone"] == pair["alone"][::-1]


def test_rows_in_groups_have_no_p():
    """The exact test takes every row for a draw of its own: ten copies of one row are no ten rows."""
    verdicts = {"a": [True] * 10, "b": [False] * 10}
    assert compared(verdicts, range(10))[0]["p"] == pytest.approx(2 / 2**10)
    (pair,) = compared(verdicts, [0] * 10)
    assert pair["p"] is None and pair["alone"] == [10, 0]
    assert compared({"a": [None], "b": [True]}, [0])[0]["p"] is None, "of no row nothing is known"


def test_every_two_columns_once():
    found = compared({name: [True, False] for name in "abcd"}, [0, 1])
    assert [pair["columns"] for pair in found] == [list(pair) for pair in ("ab", "ac", "ad", "bc", "bd", "cd")]


def test_which_was_trained_on_more():
    def table(**rows):
        return pa.table({"id": pa.array(list(rows)), "parents": pa.array(list(rows.values()), pa.list_(pa.string()))})

    seeds, more = table(s=[], t=[]), table(s=[], t=[], m=["s"], n=["s", "t"], u=[])
    assert beyond({"seeds": seeds, "more": more, "other": table(x=[]), "none": table()}) == [
        {"column": "more", "of": "seeds", "rows": 3, "made": 2}
    ]
    assert beyond({"a": seeds, "b": seeds}) == [], "the same rows are no more"
