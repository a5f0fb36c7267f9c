"""Free answers: one an example, in order, greedy where asked so, and a cancelled one ends the comparison."""

from types import SimpleNamespace

import pytest

from graftline.stages.errors import EngineFailed
from graftline.stages.evaluate.asking import answers, greedy
from graftline.stages.evaluate.metric import Asked, Example
from graftline.stages.lm.engine import Answer, Sampling

EXAMPLES = [Example(f"row{number}", ({"role": "user", "content": str(number)},), "x", "g") for number in range(3)]


def asking(finish="stop"):
    """What a metric asks with, and the requests that come."""
    requests, ticks = [], []

    def generate(given, on_answer):
        requests.extend(given)
        found = [Answer(each.id, each.messages[0]["content"] * 2, finish, 1, 1) for each in given]
        for each in reversed(found):  # in whatever order they end
            on_answer(each)
        return found

    return Asked(SimpleNamespace(generate=generate), "tuned", (), len, ticks.append), requests, ticks


def test_one_answer_an_example_in_order():
    asked, requests, ticks = asking()
    assert [answer.text for answer in greedy(asked, EXAMPLES, 5)] == ["00", "11", "22"]
    assert [each.id for each in requests] == ["row0", "row1", "row2"] and sum(ticks) == 3
    assert {each.sampling for each in requests} == {Sampling(temperature=0.0, max_new_tokens=5)}
    assert {each.adapter for each in requests} == {"tuned"}


def test_each_example_may_be_drawn_by_its_own_seed():
    asked, requests, _ = asking()
    answers(asked, EXAMPLES, [Sampling(temperature=1.0, seed=seed) for seed in (7, 8, 9)])
    assert [each.sampling.seed for each in requests] == [7, 8, 9]


def test_a_cancelled_answer_is_no_answer():
    with pytest.raises(EngineFailed, match="was cancelled"):
        greedy(asking("cancelled")[0], EXAMPLES, 5)
