"""Near-duplicates: found, joined, one of them kept, whatever the order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest

from graftline.stages.errors import MissingColumn
from graftline.stages.generate import SelfInstruct
from graftline.stages.lm.llm import Llm
from graftline.stages.select import NearDuplicates
from graftline.stages.select.near_duplicates import jaccard, shingles


def row(id: str, text: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": text}]
    return {"id": id, "messages": [*turns, {"role": "assistant", "content": more.get("answer", "yes")}], **more}


@pytest.fixture
def kept(given_rows: Any, table: Any, context: Any) -> Any:
    """Which of these rows stay, in four orders."""

    def select(rows: list[Mapping[str, Any]], **fields: Any) -> list[str]:
        has = {"score": "float64"} if "by" in fields else {}
        stage = NearDuplicates(rows=given_rows(has=has), **fields)
        whole = table(rows, **has)
        found = []
        for seed in range(4):
            order = random.Random(seed).sample(range(len(rows)), len(rows)) if seed else list(range(len(rows)))
            verdicts = list(stage.select_rows(whole.take(pa.array(order, pa.int64())), context))
            assert sorted(each.id for each in verdicts) == sorted(each["id"] for each in rows)
            assert all((each.outcome == "kept") != bool(each.reason) for each in verdicts)
            found.append(sorted(each.id for each in verdicts if each.outcome == "kept"))
        assert all(each == found[0] for each in found)
        return found[0]

    return select


LONG = "please send the invoice for the last order to our office in the old town before the end of the week"


def test_copies_and_small_edits_are_one_and_the_smallest_id_stays(kept: Any) -> None:
    rows = [row("c", LONG), row("a", LONG.upper() + "!"), row("b", f"{LONG} thanks"), row("d", "something else again")]
    assert kept(rows) == ["a", "d"]
    assert kept(rows, threshold=1.0) == ["a", "b", "d"]
    assert kept(rows[:1]) == ["c"]
    assert kept([row(str(number), LONG) for number in range(200)]) == ["0"]


def test_the_best_by_a_score_stays_and_nan_is_no_score(kept: Any) -> None:
    other, nan = "others without any score", float("nan")
    rows = [row("a", LONG, score=nan), row("b", LONG, score=1.0), row("c", LONG, score=2.0), row("d", LONG, score=2.0)]
    rows += [row("e", other, score=None), row("f", other, score=nan)]
    assert kept(rows, by="score") == ["c", "e"]
    assert kept(rows, by="score", largest=False) == ["b", "e"]


def test_short_texts_do_not_all_collide(kept: Any) -> None:
    rows = [row("a", "reset it"), row("b", "thank you"), row("c", "Reset it."), row("d", "!!!"), row("e", "???")]
    assert kept(rows) == ["a", "b", "d", "e"]
    assert kept([row("a", ""), row("b", " "), row("c", "x"), {"id": "d", "messages": None}]) == ["a", "c"]


def test_scripts_without_spaces_are_compared_by_characters(kept: Any) -> None:
    chinese = "请在本周末之前把上一份订单的发票寄到我们老城区的办公室谢谢"
    rows = [row("a", chinese), row("b", chinese + "您"), row("c", "今天天气很好我们去公园散步然后一起吃晚饭吧")]
    assert kept(rows) == ["a", "c"]
    assert len(shingles(chinese, 5)) == len(chinese) - 4


def test_clusters_join_through_a_common_row(kept: Any) -> None:
    words = [f"w{number}" for number in range(60)]
    ends = " ".join(words[:50]), " ".join(words[5:55]), " ".join(words[10:60])
    middle = shingles(ends[1], 5)
    assert jaccard(shingles(ends[0], 5), middle) >= 0.7 <= jaccard(shingles(ends[2], 5), middle)
    assert jaccard(shingles(ends[0], 5), shingles(ends[2], 5)) < 0.7
    assert kept([row("a", ends[0]), row("b", ends[1]), row("c", ends[2])]) == ["a"]


def test_what_is_compared(kept: Any) -> None:
    rows = [row("a", LONG, answer="one"), row("b", LONG, answer="a wholly different answer of many words, not the one")]
    assert kept(rows) == ["a"]
    assert kept(rows, text="conversation") == ["a", "b"]


def test_it_finds_nearly_all_pairs_that_are_alike_and_none_that_is_not(given_rows: Any, table: Any) -> None:
    """1,000 pairs of 0.85 or more: 99 % at least; unrelated texts of one vocabulary: never."""
    draw = random.Random(3)
    vocabulary = [f"w{number}" for number in range(500)]
    rows, pairs = [], 0
    for number in range(1000):
        words = draw.choices(vocabulary, k=100)
        other = words[: len(words) - draw.randint(1, 8)] + draw.choices(vocabulary, k=draw.randint(0, 4))
        one, two = " ".join(words), " ".join(other)
        pairs += jaccard(shingles(one, 5), shingles(two, 5)) >= 0.85
        rows += [row(f"{number:04}a", one), row(f"{number:04}b", two)]
    assert pairs > 900
    stage = NearDuplicates(rows=given_rows())
    gone = [each.id for each in stage.select_rows(table(rows), None) if each.outcome == "filtered"]  # type: ignore[arg-type]
    assert len(gone) >= 0.99 * pairs and all(id.endswith("b") for id in gone)


def test_signatures_estimate_the_similarity() -> None:
    from datasketch import MinHash

    draw = random.Random(5)
    for _ in range(30):
        shared = [str(draw.random()) for _ in range(draw.randint(5, 150))]
        sets = [frozenset(shared + [str(draw.random()) for _ in range(draw.randint(0, 100))]) for _ in range(2)]
        one, two = MinHash.generator([[e.encode() for e in each] for each in sets], num_perm=256, scheme="affine32")
        assert abs(one.jaccard(two) - jaccard(*sets)) <= 3 / 256**0.5


def test_it_takes_drafts_as_they_come(given_rows: Any) -> None:
    drafts = SelfInstruct(seeds=given_rows(), teacher=Llm("tiny"), count=8)
    assert dict(NearDuplicates(rows=drafts).columns) == dict(drafts.columns)
    assert NearDuplicates(rows=drafts, by="max_rouge", largest=False).by == "max_rouge"
    with pytest.raises(MissingColumn, match="ifd"):
        NearDuplicates(rows=drafts, by="ifd")
    with pytest.raises(MissingColumn, match="'answer' as number"):
        NearDuplicates(rows=drafts, by="answer")
