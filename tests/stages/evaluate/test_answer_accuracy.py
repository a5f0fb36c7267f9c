"""Free answers: the number or choice in them, never the one they were cut off at."""

import pytest

from graftline.stages import evaluate, score
from graftline.stages.errors import InvalidField, WrongKind
from graftline.stages.evaluate.metric import Asked, Example, Prediction
from graftline.stages.lm.engine import Answer


def example(reference):
    return Example("1", ({"role": "user", "content": "how many?"},), reference, "g")


@pytest.mark.parametrize(
    ("text", "finish", "reference", "right", "fault"),
    [
        ("3", "stop", "3", True, ""),
        ("First 5 + 1 = 6, half of it is 3. The answer is 3.", "stop", "3", True, ""),
        ("That makes $3.00", "stop", "3", True, ""),
        ("#### 1,234", "stop", "1234", True, ""),
        ("The answer is 13", "stop", "3", False, ""),
        ("-3", "stop", "3", False, ""),
        ("I do not know", "stop", "3", False, ""),
        ("", "stop", "3", False, "empty"),
        ("First 5 + 1 = 6, so half of it is 3", "length", "3", False, "truncated"),
        ("3", "stop", "three apples or so", None, ""),
    ],
)
def test_numbers(text, finish, reference, right, fault):
    metric = evaluate.AnswerAccuracy()
    found = metric.parsed(text, finish)
    assert (found.text, found.fault) == (text, fault)
    assert metric.correct(found, example(reference)) is right


def test_choices():
    metric = evaluate.AnswerAccuracy(by=score.Choice(choices={"A": "Rome", "B": "Paris"}))
    for text, right in (("The answer is (B)", True), ("Paris.", True), ("B) Paris", True), ("A", False), ("Pa", False)):
        assert metric.correct(Prediction(text), example("B")) is right, text


def test_answers_are_greedy_and_long_enough():
    class Engine:
        def generate(self, requests, on_answer=None):
            self.requests = requests
            return [Answer(each.id, "so it is 3", "stop", 4, 5) for each in requests]

    engine = Engine()
    metric = evaluate.AnswerAccuracy(max_new_tokens=99)
    (found,) = metric.predict(Asked(engine, "tickets", (), len), [example("3")])
    assert found == Prediction("so it is 3")
    (request,) = engine.requests
    assert (request.adapter, request.sampling.temperature, request.sampling.max_new_tokens) == ("tickets", 0.0, 99)


def test_what_the_check_cannot_tell_is_missing():
    metric = evaluate.AnswerAccuracy()
    rows = [example("3"), example("no number at all")]
    cell = metric.cell([Prediction("3"), Prediction("3")], rows, [0, 1], 0)
    assert (cell["value"], cell["n"], cell["missing"]) == (1.0, 1, 1)
    assert metric.labels(rows) == ()


def test_what_is_refused():
    with pytest.raises(InvalidField, match=r"AnswerAccuracy\.max_new_tokens"):
        evaluate.AnswerAccuracy(max_new_tokens=0)
    with pytest.raises(WrongKind, match=r"AnswerAccuracy\.by"):
        evaluate.AnswerAccuracy(by=evaluate.ExactMatch())
