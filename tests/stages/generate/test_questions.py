"""Questions go back until they can be read, a bounded number of times; what is drawn depends on nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages.generate.questions import NOT_ASKED, Question, Questions, Reply, Unreadable, turns
from graftline.stages.lm.engine import Answer, Request, Sampling


def question(key: str = "a", text: str = "How many?") -> Question:
    return Question(key, turns(None, text), Sampling(temperature=0.5, max_new_tokens=7), about=key.upper())


def number(question: Question, text: str, cut_off: bool) -> int:
    if not text.isdigit():
        raise Unreadable("it is no number")
    return int(text)


def answered(questions: Questions, texts: list[tuple[str, str]], round: int = 0) -> tuple[list[Request], list[Reply]]:
    requests = questions.requests()
    pairs = [
        (request, Answer(request.id, text, finish, 1, 1))  # type: ignore[arg-type]
        for request, (text, finish) in zip(requests, texts, strict=True)
    ]
    return requests, list(questions.replies(round, pairs, number))


def test_what_cannot_be_read_goes_back_with_what_is_wrong() -> None:
    questions = Questions(seed=3, retries=2)
    questions.ask(question())
    (first,), replies = answered(questions, [(" many ", "stop")])
    assert replies == [] and [turn["content"] for turn in first.messages] == ["How many?"]
    (second,), replies = answered(questions, [("", "stop")], 1)
    assert replies == [] and [turn["role"] for turn in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1]["content"] == "many" and "it is no number" in second.messages[2]["content"]
    (third,), (reply,) = answered(questions, [(" 12\n", "stop")], 2)
    assert [turn["role"] for turn in third.messages] == ["user"], "after an empty answer, in the same turn"
    assert third.messages[0]["content"].startswith("How many?\n\nThat cannot be used: it is no number")
    assert (reply.value, reply.text, reply.failed, reply.question.about) == (12, "12", "", "A")
    assert reply.gen == {"round": 2, "seed": third.sampling.seed}
    assert len({request.sampling.seed for request in (first, second, third)}) == 3
    assert questions.requests() == []


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_it_fails_after_a_bounded_number_of_times(retries: int) -> None:
    questions = Questions(seed=3, retries=retries)
    questions.ask(question())
    found: list[Reply] = []
    for asked in range(retries + 1):
        assert found == []
        requests, found = answered(questions, [("no", "stop")], asked)
        assert len(requests[0].messages) == (3 if asked else 1), "one complaint, not all of them"
    assert [(reply.failed, reply.text, reply.value) for reply in found] == [("it is no number", "no", None)]
    assert questions.requests() == []


def test_what_cannot_be_asked_fails_at_once() -> None:
    questions = Questions(seed=3, retries=5)
    questions.ask(question())
    _, (reply,) = answered(questions, [("12", "cancelled")])
    assert reply.failed == NOT_ASKED and questions.requests() == []


def test_a_reader_is_told_what_was_cut_off() -> None:
    questions, told = Questions(seed=3), []
    questions.ask(question())
    requests = questions.requests()
    pairs = [(request, Answer(request.id, "1", "length", 1, 1)) for request in requests]
    list(questions.replies(0, pairs, lambda question, text, cut_off: told.append((question.about, text, cut_off))))
    assert told == [("A", "1", True)]


def test_seeds_depend_on_the_stages_seed_the_key_and_the_attempt_alone() -> None:
    def seeds(seed: int, *keys: str) -> list[Any]:
        questions = Questions(seed)
        for key in keys:
            questions.ask(question(key))
        return [request.sampling for request in questions.requests()]

    alone = seeds(3, "b")[0]
    assert seeds(3, "a", "b")[1] == alone == seeds(3, "b", "a")[0] and (alone.temperature, alone.max_new_tokens) == (
        0.5,
        7,
    )
    assert seeds(4, "b")[0] != alone != seeds(3, "a")[0]


def test_requests_keep_the_order_of_the_questions() -> None:
    questions = Questions(seed=0)
    for key in "zyx":
        questions.ask(question(key, key))
    requests = questions.requests()
    assert sorted(request.id for request in requests) == [request.id for request in requests]
    assert [request.messages[0]["content"] for request in requests] == ["z", "y", "x"]


def test_turns() -> None:
    assert turns("s", "u") == ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    assert turns(None, "u") == ({"role": "user", "content": "u"},)
