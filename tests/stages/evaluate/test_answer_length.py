"""Lengths of answers, those that were cut off counted."""

import pytest

from graftline.stages import evaluate
from graftline.stages.errors import EngineFailed, InvalidField
from graftline.stages.evaluate.metric import Asked, Example, Prediction
from graftline.stages.lm.engine import Answer


def example(text):
    return Example(text, ({"role": "user", "content": text},), "x", text)


class Engine:
    """Answers with as many words as the prompt has."""

    def __init__(self, finish="stop"):
        self.finish, self.requests = finish, []

    def generate(self, requests, on_answer=None):
        self.requests += requests
        found = []
        for request in requests:
            text = request.messages[-1]["content"]
            cut = len(text.split()) >= request.sampling.max_new_tokens
            tokens = min(len(text.split()) + 1, request.sampling.max_new_tokens)
            found.append(Answer(request.id, text, "length" if cut else self.finish, 5, tokens))
            if on_answer:
                on_answer(found[-1])
        return found


def test_lengths_and_what_was_cut_off():
    metric, engine, ticks = evaluate.AnswerLength(max_new_tokens=4), Engine(), []
    rows = [example("one"), example("one two"), example("one two three four five")]
    found = metric.predict(Asked(engine, "tickets", (), len, ticks.append), rows)
    assert [each.value for each in found] == [2, 3, 4]
    assert [each.fault for each in found] == ["", "", "truncated"]
    assert {(each.adapter, each.sampling.temperature) for each in engine.requests} == {("tickets", 0.0)}
    assert sum(ticks) == 3
    cell = metric.cell(found, rows, [0, 1, 2], 0)
    assert (cell["value"], cell["n"], cell["cut_off"]) == (3.0, 3, pytest.approx(1 / 3))
    assert cell["ci_low"] <= 3 <= cell["ci_high"]


def test_a_gain_is_in_tokens():
    before, after = ([Prediction("", value=value) for value in values] for values in ((10.0, 12.0), (4.0, 6.0)))
    gain = evaluate.AnswerLength().gain(before, after, [example("a"), example("b")], [0, 1], 0)
    assert (gain["value"], gain["ci_low"], gain["ci_high"]) == (-6, -6, -6)


def test_a_cancelled_answer_is_no_answer():
    with pytest.raises(EngineFailed, match="cancelled"):
        evaluate.AnswerLength().predict(Asked(Engine("cancelled"), None, (), len), [example("a")])


def test_no_tokens_are_refused():
    with pytest.raises(InvalidField, match=r"AnswerLength\.max_new_tokens"):
        evaluate.AnswerLength(max_new_tokens=0)
