"""Pairs from ratings: one of every two that differ, none of a tie; a prompt's pairs are never cut apart."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from graftline.stages import expected
from graftline.stages.errors import MissingColumn
from graftline.stages.generate.rated_pairs import RatedPairs
from graftline.stages.rows import schema

from .conftest import Given, Opened

STAGE = RatedPairs(candidates=Given(has={"rating": "float64"}), by="rating")


def row(number: int, prompt: str, answer: str | None, rating: float | None, group: str = "g") -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    turns += [{"role": "assistant", "content": answer}] if answer is not None else []
    return {"id": f"r{number:02}", "parents": [], "group": group, "messages": turns, "rating": rating}


def pairs(rows: list[dict[str, Any]]) -> list[Any]:
    return list(STAGE.make_rows(None, candidates=Opened(rows, STAGE.candidates.columns)))  # type: ignore[arg-type]


@cases(st.lists(st.one_of(st.none(), st.integers(1, 10), st.just(float("nan"))), max_size=8), st.integers(0, 9))
def test_every_two_that_differ(ratings: list[Any], shuffle: int) -> None:
    rows = [row(number, "q", f"answer {number}", rating) for number, rating in enumerate(ratings)]
    random.Random(shuffle).shuffle(rows)
    made = pairs(rows)
    rated = [rating for rating in ratings if rating is not None and rating == rating]
    ties = sum(a == b for a, b in combinations(rated, 2))
    assert len(made) == len(rated) * (len(rated) - 1) // 2 - ties
    scores = {f"answer {number}": rating for number, rating in enumerate(ratings)}
    for each in made:
        assert each.row["margin"] == scores[each.row["chosen"]] - scores[each.row["rejected"]] > 0
        assert each.outcome == "kept" and len(set(each.row["parents"])) == 2
    assert len({each.row["id"] for each in made}) == len(made)


def test_prompts_are_not_mixed_and_share_a_split() -> None:
    made = pairs(
        [
            row(0, "q", "a", 1.0, "g2"),
            row(1, "q", "b", 2.0, "g1"),
            row(2, "q", "c", None, "g3"),
            row(3, "Q", "d", 3.0),
            row(4, "q", None, 9.0),
        ]
    )
    (one,) = made
    assert (one.row["chosen"], one.row["rejected"], one.row["group"]) == ("b", "a", "g1|g2|g3")
    assert one.row["prompt"] == [{"role": "user", "content": "q"}] and one.row["parents"] == ["r01", "r00"]
    assert pa.Table.from_pylist([one.row], schema=schema(STAGE.columns)).num_rows == 1
    assert set(one.row) == set(STAGE.columns) and "messages" not in STAGE.columns


def test_the_same_text_is_no_pair() -> None:
    made = pairs([row(0, "q", "a", 1.0), row(1, "q", "a", 2.0), row(2, "q", "b", 3.0)])
    assert Counter((each.outcome, each.reason) for each in made) == {
        ("kept", ""): 2,
        ("filtered", "chosen and rejected are the same"): 1,
    }


def test_ratings_must_be_there() -> None:
    with pytest.raises(MissingColumn, match="needs the column 'rating'"):
        RatedPairs(candidates=Given(), by="rating")


def test_a_plan_pairs_every_two_answers() -> None:
    rows = [row(number, f"question {number // 3}", f"answer {number}", 1.0 + number % 3) for number in range(30)]
    made = pairs(rows)
    told = STAGE.expected(expected.Given({STAGE.candidates.key: expected.Volume(30, tuple(rows))})).rows
    assert (told.count, told.mark) == (len(made), "<=") == (30, "<=") and told.sample[0]["chosen"] == "answer 0"
    alone = expected.Given({STAGE.candidates.key: expected.Volume(3000, tuple(rows[::3]))})
    assert STAGE.expected(alone).rows.count is None
