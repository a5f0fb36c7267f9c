"""Loss and perplexity are the arithmetic of log-probabilities, every token of the last answer alike."""

import math

import pytest

from graftline.stages import evaluate
from graftline.stages.evaluate.metric import Asked, Example, Prediction


class Engine:
    """The same log-probability for each word of an answer, and for its end."""

    def __init__(self, each):
        self.each, self.asked = each, []

    def logprobs(self, rows, adapter=None):
        self.asked.append(adapter)
        return [[self.each] * (len(row[-1]["content"].split()) + 1) for row in rows]


def example(id, reference, *earlier):
    turns = [{"role": "user", "content": "?"}]
    for text in earlier:
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "and?"}]
    return Example(id, tuple(turns), reference, id)


def test_every_token_of_the_answer_and_its_end():
    rows = [example("1", "mobile data"), example("2", "billing")]
    engine, ticks = Engine(-0.5), []
    found = evaluate.Loss().predict(Asked(engine, "tickets", (), len, ticks.append), rows)
    assert [(each.value, each.weight) for each in found] == [(0.5, 3.0), (0.5, 2.0)]
    assert set(engine.asked) == {"tickets"}
    assert sum(ticks) == 2


def test_the_mean_is_over_tokens_not_rows():
    predictions = [Prediction("", value=1.0, weight=3.0), Prediction("", value=5.0, weight=1.0)]
    cell = evaluate.Loss().cell(predictions, [example("1", "a"), example("2", "b")], [0, 1], 0)
    assert cell["value"] == 2.0
    assert cell["perplexity"] == pytest.approx(math.exp(2.0))
    assert cell["ci_low"] <= 2.0 <= cell["ci_high"]
    assert cell["n"] == 2


def test_a_gain_is_paired():
    rows = [example(str(place), "a") for place in range(20)]
    before = [Prediction("", value=float(place), weight=2.0) for place in range(20)]
    after = [Prediction("", value=place - 0.5, weight=2.0) for place in range(20)]
    gain = evaluate.Loss().gain(before, after, rows, list(range(20)), 0)
    assert (gain["value"], gain["n"]) == (-0.5, 20)
    assert gain["ci_low"] == pytest.approx(-0.5) == gain["ci_high"]


def test_earlier_turns_count_for_nothing():
    class Talk:
        def logprobs(self, rows, adapter=None):
            texts = [[turn["content"] for turn in row if turn["role"] == "assistant"] for row in rows]
            return [[{"early": -9.0, "late": -0.25}[text] for text in row for _ in range(2)] for row in texts]

    rows = [example("1", "late", "early"), example("2", "late")]
    found = evaluate.Loss().predict(Asked(Talk(), None, (), len), rows)
    assert [(each.value, each.weight) for each in found] == [(0.25, 2.0), (0.25, 2.0)]


def test_what_is_not_a_number_is_missing():
    rows = [example("1", "a"), example("2", "b")]
    assert evaluate.Loss().predict(Asked(Engine(math.nan), None, (), len), rows[:1])[0].fault == "not_a_number"
    predictions = [Prediction("", fault="not_a_number"), Prediction("", value=1.0)]
    cell = evaluate.Loss().cell(predictions, rows, [0, 1], 0)
    assert (cell["value"], cell["n"], cell["missing"]) == (1.0, 1, 1)
    nothing = evaluate.Loss().cell(predictions[:1], rows[:1], [0], 0)
    assert math.isnan(nothing["value"]) and math.isnan(nothing["perplexity"])
    assert evaluate.Loss().gain(predictions, predictions[::-1], rows, [0, 1], 0)["n"] == 0
