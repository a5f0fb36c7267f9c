"""STaR: what is kept is right and never saw a hint, solved questions are asked once, the loop starts from the base."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graftline.pipelines import run
from graftline.stages import Growing, Llm, generate, read, train
from graftline.stages.errors import InvalidField
from graftline.stages.expected import Given
from graftline.stages.generate.questions import CUT_OFF, NOT_ASKED
from graftline.stages.generate.star import INSTRUCTION, Shot, Star
from graftline.stages.rows import schema
from graftline.stages.score.check import Check, Checked
from graftline.stages.score.choice import Choice
from graftline.stages.stage import Model, Rows, Stage
from graftline.stages.value_graph import from_json, to_json, walk

SUMS = [(f"What is {a} + {b}?", f"{a} + {b} = {a + b}\n#### {a + b}") for a, b in ((3, 4), (8, 5), (12, 9), (30, 31))]
SHOT = Shot(question="What is 1 + 1?", rationale="One and one are two. #### 2", answer="2")


@pytest.fixture
def stage(given: Any, teacher: Any) -> Any:
    return lambda **fields: Star(**{"questions": given(), "model": teacher, **fields})


def asked(request: Any) -> str:
    return str(request.messages[-1]["content"]).removesuffix(f"\n\n{INSTRUCTION}")


def right(question: str) -> int:
    return sum(map(int, re.findall(r"(\d+) \+ (\d+)", question)[-1]))


def explains(request: Any, number: int) -> Any:
    """Adds without carrying: right for sums without a carry, and wherever the answer is told; sometimes it tells."""
    question = asked(request)
    told = re.search(r"\? \((\d+)\)$", question)
    a, b = map(int, re.findall(r"(\d+) \+ (\d+)", question)[-1])
    without_carry = a + b - (10 if a % 10 + b % 10 >= 10 else 0)
    if told and told[1] == "21":
        return f"Since it must be ({told[1]}). #### {told[1]}"
    return f"Ones, then tens. #### {told[1] if told else without_carry}"


def test_what_is_kept_is_right_and_saw_no_hint(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(explains)
    star, questions = stage(shots=(SHOT,)), seed_rows(SUMS, system="You add.")
    made = rounds.play(star, questions)
    by_parent = {each.row["parents"][0]: each for each in made}
    assert [by_parent[f"seed0{n}"].outcome for n in range(4)] == ["kept", "kept", "filtered", "kept"]
    assert by_parent["seed02"].reason == "repeats the hint"
    assert [by_parent[f"seed0{n}"].row["rationalised"] for n in range(4)] == [False, True, True, False]
    for each in made:
        row = each.row
        question, gold = SUMS[int(row["parents"][0][-1])]
        assert row["messages"][:-1] == [
            {"role": "system", "content": "You add."},
            {"role": "user", "content": question},
        ]
        assert row["answer"] == row["messages"][-1]["content"] and row["reference"] == gold
        if each.outcome == "kept":
            assert star.by.checked(row["answer"], gold).verified == 1
            assert f"({right(question)})" not in str(row["messages"]) and INSTRUCTION not in str(row["messages"])
    assert pa.Table.from_pylist([each.row for each in made], schema=schema(star.columns)).num_rows == 4

    first, second = rounds.requests
    assert {asked(request) for request in first} == {question for question, _ in SUMS}
    assert {asked(request) for request in second} == {"What is 8 + 5? (13)", "What is 12 + 9? (21)"}
    for request, shown in ((first[0], "What is 1 + 1?"), (second[0], "What is 1 + 1? (2)")):
        system, question, answer, _ = request.messages
        assert (system["role"], question["content"]) == ("system", f"{shown}\n\n{INSTRUCTION}")
        assert answer["content"] == SHOT.rationale
    assert (first[0].sampling.temperature, first[0].sampling.top_p) == (0.01, 0.9)


def test_without_rationalisation_it_is_rejection_sampling(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(explains)
    made = rounds.play(stage(rationalise=0.0), seed_rows(SUMS))
    assert len(rounds.requests) == 1
    assert Counter(each.reason for each in made) == {"": 2, "its answer is wrong": 2}
    assert not any(each.row["rationalised"] for each in made)


def test_a_share_is_rationalised(play: Any, stage: Any, seed_rows: Any) -> None:
    questions = seed_rows([(f"What is {n} + 9?", str(n + 9)) for n in range(1, 200) if n % 10])
    rounds = play(lambda request, number: "#### 0")
    made = rounds.play(stage(rationalise=0.5), questions)
    assert len(rounds.requests[0]) == len(questions) == len(made)
    assert 0.4 < len(rounds.requests[1]) / len(questions) < 0.6
    reasons = Counter(each.reason for each in made)
    assert reasons["its answer is wrong, with a hint too"] == len(rounds.requests[1])
    assert sum(reasons.values()) == len(questions) and set(reasons) == {
        "its answer is wrong", "its answer is wrong, with a hint too"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (("One, two. #### 7", "length"), "filtered", CUT_OFF),
        (("", "cancelled"), "failed", NOT_ASKED),
        ("", "filtered", "its answer is wrong, with a hint too"),
        ("It is 70. #### 77", "filtered", "its answer is wrong, with a hint too"),
        ("Seven. #### 7.0", "kept", ""),
    ],
)
def test_what_is_no_rationale(play: Any, stage: Any, seed_rows: Any, answer: Any, outcome: str, reason: str) -> None:
    (made,) = play(lambda request, number: answer).play(stage(), seed_rows(SUMS[:1]))
    assert (made.outcome, made.reason) == (outcome, reason)


def test_choices(play: Any, stage: Any, seed_rows: Any) -> None:
    question = "Where does bread go?\n(A) bank\n(B) bread box"
    rounds = play(lambda request, number: "It keeps fresh there.\n#### B" if "CORRECT" in asked(request) else "#### A")
    by = Choice(choices={"A": "bank", "B": "bread box"})
    (made,) = rounds.play(stage(by=by), seed_rows([(question, "B")]))
    assert made.outcome == "kept" and made.row["rationalised"] and "CORRECT" not in str(made.row["messages"])
    assert asked(rounds.requests[1][0]) == f"{question} (CORRECT)"


def test_what_cannot_be_checked_is_not_asked(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(explains)
    made = rounds.play(stage(), seed_rows([("What is 1 + 2?", None), (" ", "3"), ("What is 1 + 2?", "3")]))
    assert Counter(each.reason for each in made) == {"its reference cannot be checked": 1, "has no question": 1, "": 1}
    assert sum(map(len, rounds.requests)) == 1


class Brittle(Check):
    """Fails where a response has no digit."""

    def checked(self, response: str, reference: str | None) -> Checked:
        return Checked(int(re.findall(r"\d+", response)[-1] == reference))


def test_a_check_that_fails_finds_nothing_right(play: Any, stage: Any, seed_rows: Any) -> None:
    made = play(lambda request, number: "no digit").play(stage(by=Brittle()), seed_rows([("2 + 2?", "4"), ("x", "x")]))
    assert Counter(each.reason for each in made) == {
        "its answer is wrong, with a hint too": 1,
        "its reference cannot be checked": 1,
    }


def test_batches_and_order_do_not_matter(play: Any, stage: Any, seed_rows: Any) -> None:
    def moody(request: Any, number: int) -> str:
        return f"#### {right(asked(request)) if random.Random(request.sampling.seed).random() < 0.5 else 0}"

    questions = seed_rows([(f"What is {n} + 9?", str(n + 9)) for n in range(20)])
    whole = play(moody).play(stage(), questions)
    assert {(each.outcome, each.row["rationalised"]) for each in whole} > {("kept", False), ("kept", True)}
    assert play(moody, 3).play(stage(), questions[::-1]) == whole


def test_a_plan_is_within_a_factor_of_two(play: Any, stage: Any, seed_rows: Any) -> None:
    def half(request: Any, number: int) -> str:
        steps = "first we add what there is, then we look at it again, " * 3
        return f"{steps}#### {right(asked(request)) if request.sampling.seed % 2 else 0}"

    questions = seed_rows([(f"What is {n} + 9?", str(n + 9)) for n in range(20)])
    told = play(half).planned(stage(max_new_tokens=96), questions)
    assert (told.rows.count, told.rows.mark, told.usage.requests) == (20, "<=", 30)
    assert stage(rationalise=0.0).expected(Given()).usage.requests is None


def test_fields(stage: Any) -> None:
    with pytest.raises(InvalidField, match="does not end in its answer") as caught:
        stage(shots=(SHOT, Shot(question="What is 1 + 2?", rationale="#### 4", answer="3")))
    assert caught.value.where == "Star.shots.1"


class Even(Check):
    """Right is what has an even number of words."""

    def checked(self, response: str, reference: str | None) -> Checked:
        return Checked(int(response == reference or len(response.split()) % 2 == 0))


def loop(rows: Any, student: Any, at_most: int = 2, **fields: Any) -> Any:
    def tune(found: Any) -> Any:
        return train.Train(model=student, rows=found, adapter=train.Lora(rank=2), steps=2, dtype="float32")

    return generate.star_loop(rows, student, tune, at_most, by=Even(), max_new_tokens=30, **fields)


def test_each_round_trains_the_original_model_on_what_the_last_one_explains(given: Any) -> None:
    student = Llm("tiny", engine="scripted")
    rounds = list(loop(given(), student, 3, rationalise=0.5).foreseen().values())
    assert len(rounds) == 3 and all(each.model == student for each in rounds)
    explaining = [each.rows.model for each in rounds]
    assert explaining == [student, rounds[0], rounds[1]], "rationales are the last round's"
    assert {each.rows.questions.key for each in rounds} == {given().key}, "of all questions, anew"
    assert all(each.rows.rationalise == 0.5 for each in rounds)
    with pytest.raises(InvalidField, match="another model than the original") as caught:
        generate.star_loop(given(), student, lambda rows: train.Train(model=Llm("tiny"), rows=rows), 2)
    assert caught.value.where == "star_loop.tune"


def lengths(given: Any, **fields: Any) -> list[Any]:
    """Steps and epochs of three rounds of which `tune` says these fields."""
    student = Llm("tiny", engine="scripted")
    looped = generate.star_loop(given(), student, lambda rows: train.Train(model=student, rows=rows, **fields), 3)
    classes = {each.qualified: type(each) for each in walk(looped)}
    assert from_json(to_json({"r": looped}), classes) == {"r": looped}
    rounds = list(looped.foreseen().values())
    assert not any(each.is_open for each in rounds) and all(each.model == student for each in rounds)
    return [(each.steps, each.epochs) for each in rounds]


def test_rounds_grow_as_the_papers_unless_told_how_long_they_are(given: Any) -> None:
    assert lengths(given) == lengths(given, batch_size=4) == [(40, 3.0), (48, 3.0), (58, 3.0)]
    assert lengths(given, steps=7) == [(7, 3.0)] * 3
    assert lengths(given, epochs=3.0) == lengths(given, steps=None) == [(None, 3.0)] * 3
    assert lengths(given, epochs=1.0) == [(None, 1.0)] * 3
    assert lengths(given, steps=Growing(first=10, factor=2.0)) == [(10, 3.0), (20, 3.0), (40, 3.0)]


class Tuned(Stage):
    """A user's own training, which knows no steps."""

    makes = "model"
    model: Model
    rows: Rows


def test_a_training_without_steps_is_left_as_it_is(given: Any) -> None:
    student = Llm("tiny", engine="scripted")
    looped = generate.star_loop(given(), student, lambda rows: Tuned(model=student, rows=rows), 2)
    assert isinstance(looped.body, Tuned) and not any(isinstance(node, Growing) for node in walk(looped))


@pytest.mark.real
def test_the_loop_in_a_run(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text("".join(f'{{"q": "What is {n} + 1?", "a": "{n + 1}"}}\n' for n in range(24)))
    student = Llm("tiny", engine="scripted")
    star = loop(read.Jsonl(path="sums.jsonl", prompt="{q}", answer="{a}"), student)
    made = run(star, str(tmp_path / "store"), base=tmp_path, address="here")["result"]
    assert made.kind == "adapter" and made.metrics["rounds_made"] == 2
    explained = sorted((tmp_path / "store" / "artefacts").glob("Star-*"))
    assert len(explained) == 2, "the second round's rationales are another model's"
    digests = {json.loads(path.read_text())["digest"] for each in explained for path in each.glob("*/artefact.json")}
    assert len(digests) == 2
    cards = [
        json.loads(path.read_text())
        for path in (tmp_path / "store" / "artefacts").glob("Train-*/*/adapter/graftline.json")
    ]
    assert len(cards) == 2 and len({card["base"]["weights_digest"] for card in cards}) == 1, "both began with one model"
    assert len({card["adapter_digest"] for card in cards}) == 2
    again = run(star, str(tmp_path / "store"), base=tmp_path, address="here")
    assert again.ran == 0 and again["result"].digest == made.digest
