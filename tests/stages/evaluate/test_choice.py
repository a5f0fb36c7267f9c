"""Choice: the arg-max of the engine's numbers, whatever it would write."""

import math

import pytest

from graftline.stages import evaluate
from graftline.stages.errors import InvalidField
from graftline.stages.evaluate.metric import Asked, Example, Prediction


def test_the_most_probable_label():
    parsed = evaluate.Choice.parsed
    assert parsed([-3.0, -1.0, -2.0], ("a", "b", "c")) == Prediction("b", "b")
    assert parsed([-1.0, -1.0], ("a", "b")) == Prediction("a", "a")
    assert parsed([-math.inf, -900.0], ("a", "b")) == Prediction("b", "b")
    assert parsed([-1.0, math.nan], ("a", "b")) == Prediction("", "", "not_a_number")


def test_it_is_blind_to_format(table_engine):
    """A model that knows the answer and writes an essay: nothing by exact match, everything by choice."""
    examples = [Example(text, ({"role": "user", "content": text},), text, text) for text in ("aa", "bb", "cc") * 9]
    essays = {(None, text): (f"I would say {text}", "stop") for text in ("aa", "bb", "cc")}
    engine = table_engine(essays, lambda adapter, text, choice: 0.0 if choice == text else -5.0)
    ticks = []
    for metric, expected in ((evaluate.ExactMatch(), 0), (evaluate.Choice(), 27)):
        asked = Asked(engine, None, metric.labels(examples), lambda texts: 3, ticks.append)
        found = metric.predict(asked, examples)
        assert sum(map(metric.correct, found, examples)) == expected
    assert sum(ticks) == 2 * 27
    assert {row for _, _, row in engine.scored} == {("aa", "bb", "cc")}


def test_free_text_is_no_choice():
    examples = [Example(str(number), (), f"answer {number}", "g") for number in range(257)]
    with pytest.raises(InvalidField, match="257 distinct answers"):
        evaluate.Choice().labels(examples)
    assert evaluate.Choice(choices=("yes", "no")).labels(examples) == ("yes", "no")
