"""ROUGE-L against the reference package, and the pruned search against looking at everything."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.generate.rouge import Pool, rouge_l, words

text = st.lists(st.sampled_from("abcde"), max_size=12)


def table(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, the usual way."""
    row = [0] * (len(second) + 1)
    for mine in first:
        last = 0
        for index, other in enumerate(second, 1):
            last, row[index] = row[index], last + 1 if mine == other else max(row[index], row[index - 1])
    return row[-1]


def brute(pool: list[list[str]], found: list[str]) -> tuple[float, str | None]:
    scores = [(2 * table(other, found) / (len(other) + len(found) or 1), index) for index, other in enumerate(pool)]
    best = max((score for score, _ in scores), default=0.0)
    return best, min(f"{index:02}" for score, index in scores if score == best) if best else None


@given(text, text)
def test_it_is_the_usual_table(first: list[str], second: list[str]) -> None:
    expected = 2 * table(first, second) / (len(first) + len(second)) if first or second else 0.0
    assert rouge_l(first, second) == rouge_l(second, first) == expected


@given(st.lists(text, max_size=15), text)
def test_pruning_and_brute_force_agree(pool: list[list[str]], found: list[str]) -> None:
    made = Pool()
    for index, other in enumerate(pool):
        made.add(f"{index:02}", other)
    assert made.nearest(found) == brute(pool, found)


def test_it_agrees_with_the_rouge_score_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    draw = random.Random(3)
    tokens = ["The", "router's", "lamp", "BLINKS", "red,", "again", "café", "24h", "-", "it", "is", "down!"]
    for _ in range(200):
        first, second = (" ".join(draw.choices(tokens, k=draw.randint(1, 30))) for _ in range(2))
        expected = scorer.score(first, second)["rougeL"].fmeasure
        assert rouge_l(words(first), words(second)) == pytest.approx(expected, abs=1e-12)


def test_words_are_lower_case_letters_and_digits_unstemmed() -> None:
    assert words("It's DOWN—again: 2.5 Mbit/s, Füße running") == [
        "it", "s", "down", "again", "2", "5", "mbit", "s", "f", "e", "running",
    ]  # fmt: skip


def test_a_pool_of_thousands_is_quick() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{int(draw.paretovariate(0.7))}" for _ in range(2000)]
    texts = [draw.choices(vocabulary, k=draw.randint(8, 40)) for _ in range(2000)]
    pool = Pool()
    for index, each in enumerate(texts):
        pool.add(str(index), each)
    begin = time.perf_counter()
    for each in texts[:200]:
        assert pool.nearest(each)[0] == 1.0
    assert time.perf_counter() - begin < 4
