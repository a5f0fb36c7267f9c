"""Diversity is least where all answers are one, and does not fall with length as a plain share does."""

import random

import pytest

from graftline.stages import evaluate
from graftline.stages.errors import InvalidField
from graftline.stages.evaluate.diversity import WORD, adjusted
from graftline.stages.evaluate.metric import Asked, Example, Prediction
from graftline.stages.lm.engine import Answer

SIZE = 50_000


def texts(count, length, words, seed=0):
    draw = random.Random(seed)
    return [[f"w{draw.randrange(words)}" for _ in range(length)] for _ in range(count)]


def plain(found):
    """The share of distinct words."""
    words = [word for text in found for word in text]
    return len(set(words)) / len(words)


def rows(count):
    return [Example(str(place), ({"role": "user", "content": f"q{place}"},), "x", str(place)) for place in range(count)]


def test_by_hand():
    """a b a: n=1: 2 distinct of 3; n=2: 2 of 2; n=3: 1 of 1; with 10 words to draw from."""
    expected = [10 * (1 - 0.9**count) for count in (3, 2, 1)]
    wanted = sum(distinct / of for distinct, of in zip((2, 2, 1), expected, strict=True)) / 3
    assert adjusted([["a", "b", "a"]], 10) == pytest.approx(wanted)
    assert adjusted([], 10) == adjusted([[]], 10) == 0


def test_equal_answers_have_the_least():
    one = texts(1, 12, 1000)
    same, mixed = adjusted(one * 16, SIZE), adjusted(texts(16, 12, 1000), SIZE)
    assert same < 0.1 < 0.9 < mixed
    assert adjusted([["a"] * 12] * 16, SIZE) < same


def test_length_costs_less_than_it_costs_a_plain_share():
    """Texts twice as long from the same words."""
    words = 300
    short, long = texts(40, 10, words), texts(40, 20, words)
    fall = 1 - adjusted_words(long, words) / adjusted_words(short, words)
    assert abs(fall) < 0.1 < 0.3 < 1 - plain(long) / plain(short)


def adjusted_words(found, size):
    """EAD of single words."""
    return adjusted([[word] for text in found for word in text], size)


def test_one_seeded_answer_a_prompt_at_one_temperature():
    class Engine:
        def __init__(self):
            self.requests = []

        def generate(self, requests, on_answer=None):
            self.requests += requests
            return [Answer(each.id, f"answer {each.sampling.seed}", "stop", 3, 3) for each in requests]

    metric, engine = evaluate.Diversity(temperature=0.8), Engine()
    found = metric.predict(Asked(engine, "tickets", (), len), rows(5))
    assert len(engine.requests) == len(found) == 5
    assert {each.sampling.temperature for each in engine.requests} == {0.8}
    assert len({each.sampling.seed for each in engine.requests}) == 5
    again = metric.predict(Asked(Engine(), None, (), len), rows(5)[2:])  # a part alone is drawn alike
    assert again == found[2:]
    other = evaluate.Diversity(temperature=0.8, seed=1).predict(Asked(Engine(), None, (), len), rows(5))
    assert not {each.text for each in other} & {each.text for each in found}


def test_an_interval_that_covers_and_a_paired_gain():
    metric = evaluate.Diversity()
    varied = [Prediction(" ".join(text)) for text in texts(30, 10, 200)]
    same = [Prediction("no idea , sorry")] * 30
    cell = metric.cell(varied, rows(30), list(range(30)), 0)
    assert cell["ci_low"] < cell["value"] < cell["ci_high"] < cell["value"] + 0.2
    gain = metric.gain(varied, same, rows(30), list(range(30)), 0)
    assert gain["value"] == pytest.approx(metric.cell(same, rows(30), list(range(30)), 0)["value"] - cell["value"])
    assert gain["ci_high"] < 0
    assert metric.gain(varied, varied, rows(30), list(range(30)), 0)["value"] == 0


def test_words_are_words_of_any_script_and_marks():
    assert WORD.findall("don't — naïve 漢字!") == ["don", "'", "t", "—", "naïve", "漢字", "!"]


def test_greedy_answers_would_measure_nothing():
    with pytest.raises(InvalidField, match=r"Diversity\.temperature"):
        evaluate.Diversity(temperature=0.0)
