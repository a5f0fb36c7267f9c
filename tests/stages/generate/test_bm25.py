"""BM25 is the formula, and ties go to the earlier text."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.generate.bm25 import K1, B, Bm25, terms

sentence = st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join)


def plain(texts: list[str], query: str) -> list[float]:
    """The textbook's sum, term by term."""
    documents = [text.split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in query.split():
            times, holding = document.count(term), sum(term in other for other in documents)
            if times:
                rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                score += rarity * times * (K1 + 1) / (times + K1 * (1 - B + B * len(document) / mean))
        scores.append(score)
    return scores


@given(st.lists(sentence, min_size=1, max_size=8), sentence, st.integers(1, 8))
def test_it_is_the_formula(texts: list[str], query: str, most: int) -> None:
    scores = plain(texts, query) if any(texts) else [0.0] * len(texts)
    found = Bm25(texts).search(query, most)
    assert len(found) == min(most, sum(score > 0 for score in scores))
    ranks = [round(scores[index], 9) for index in found]
    assert ranks == sorted(ranks, reverse=True) and min(ranks, default=1) > 0
    left = [round(score, 9) for index, score in enumerate(scores) if index not in found]
    assert not ranks or len(found) < most or max(left, default=0) <= ranks[-1]


def test_rare_words_and_short_texts_count_more() -> None:
    index = Bm25(["the mill by the river", "the river", "a long text that names the mill once, among much else"])
    assert index.search("The MILL", 3) == [0, 2, 1]
    assert index.search("river", 1) == [1]
    assert index.search("nothing of it", 3) == [] == Bm25([]).search("x", 3)


def test_equal_texts_keep_their_order_and_any_script_counts() -> None:
    assert Bm25(["река", "RIVER", "Река"]).search("река", 3) == [0, 2]
    assert terms("Über_x, 3.5!") == ["über_x", "3", "5"]
