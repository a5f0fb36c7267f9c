"""The loop: balanced labels, prompts from seeds alone, exact novelty over everything, the same rows again."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from typing import Any

import pyarrow as pa
import pytest

from graftline.stages.errors import InvalidField, RequestError, WrongKind
from graftline.stages.expected import Given
from graftline.stages.generate.drafts import CONFLICT
from graftline.stages.generate.rouge import rouge_l, words
from graftline.stages.generate.self_instruct import SelfInstruct, numbered
from graftline.stages.lm.scripted import sentence
from graftline.stages.rows import schema

NOISE = ("", "Too short.", ": starts badly, it does", "As an AI language model I cannot say", "one two three four:")


def writes(request: Any, number: int) -> Any:
    """A teacher with every fault: it repeats seeds and itself, breaks rules, and is cut off."""
    draw = random.Random(request.sampling.seed)
    kind = draw.random()
    if kind < 0.1:
        return sentence(draw.randrange(10**9)), "length"
    if kind < 0.25:
        return draw.choice(NOISE)
    if kind < 0.35:
        return request.prefix.splitlines()[0].split(": ", 1)[1]
    if kind < 0.6:
        return sentence(draw.randrange(6))  # the same few, for both labels
    return sentence(draw.randrange(10**9)) + "\n"


def text(row: Any) -> str:
    return next(turn["content"] for turn in row["messages"] if turn["role"] == "user")


def test_the_promises_about_kept_rows(play: Any, self_instruct: Any, seed_rows: Any) -> None:
    stage, seeds = self_instruct(count=40), seed_rows(system="Name the queue.")
    rounds = play(writes)
    made = rounds.play(stage, seeds)
    kept = [each.row for each in made if each.outcome == "kept"]
    assert Counter(row["answer"] for row in kept) == {"billing": 20, "outage": 20}
    assert len(made) == sum(map(len, rounds.requests)) and {each.outcome for each in made} == {"kept", "filtered"}

    everything = [text(seed) for seed in seeds] + [text(row) for row in kept]
    assert max(rouge_l(words(a), words(b)) for a, b in combinations(everything[7:], 2)) <= 0.7
    assert all(rouge_l(words(text(row)), words(seed)) <= 0.7 for row in kept for seed in everything[:7])
    before: dict[str, str] = {seed["id"]: text(seed) for seed in seeds}
    for each in made:
        row, score = each.row, each.row["max_rouge"]
        if each.outcome == "kept" or (each.reason == CONFLICT and score is not None):  # that one was kept until then
            scores = {name: rouge_l(words(text(row)), words(other)) for name, other in before.items()}
            assert score == max(scores.values()) and scores[row["nearest_id"]] == score
            before[row["id"]] = text(row)

    groups = {seed["id"]: (seed["group"], seed["answer"]) for seed in seeds}
    for row in kept:
        assert len(set(row["parents"])) == 3
        assert {groups[parent][1] for parent in row["parents"]} == {row["answer"]}
        assert row["group"].split("|") == sorted(groups[parent][0] for parent in row["parents"])
        assert row["messages"][0] == {"role": "system", "content": "Name the queue."}
        assert row["messages"][-1] == {"role": "assistant", "content": row["answer"]}
        assert row["gen"]["model"] == "teacher-1" and row["gen"]["stage"] == stage.method
    table = pa.Table.from_pylist(kept, schema=schema(stage.columns))
    assert table.num_rows == 40 and set(kept[0]) == set(stage.columns)

    reasons = Counter(each.reason for each in made if each.outcome == "filtered")
    for reason in ("was cut off at max_new_tokens", "is empty", "repeats an example", "ends with a colon"):
        assert reasons[reason], reasons
    assert reasons["is more like another text than ROUGE-L 0.7"] + reasons[CONFLICT]


def test_a_cut_off_answer_is_never_a_row(play: Any, self_instruct: Any, seed_rows: Any) -> None:
    for finish, reason in (("length", "was cut off at max_new_tokens"), ("cancelled", "was cancelled")):
        made = play(lambda request, number, finish=finish: (sentence(request.sampling.seed), finish)).play(
            self_instruct(rounds=2), seed_rows()
        )
        assert made and {(each.outcome, each.reason) for each in made} == {("filtered", reason)}


def test_how_answers_are_batched_does_not_matter(play: Any, self_instruct: Any, seed_rows: Any) -> None:
    stage = self_instruct(count=30)
    whole = play(writes).play(stage, seed_rows())
    for chunk in (1, 3, 7):
        assert play(writes, chunk).play(stage, seed_rows()) == whole
    assert play(writes).play(stage, seed_rows()[::-1]) == whole, "nor the order of the seeds"
    assert play(writes).play(stage.replace("seed", 1), seed_rows()) != whole


def test_prompts_show_seeds_of_the_label_and_nothing_else(play: Any, self_instruct: Any, seed_rows: Any) -> None:
    rounds = play(writes)
    rounds.play(self_instruct(count=30, system="You write."), seed_rows())
    assert len(rounds.requests) > 1
    seeds: dict[str, set[str]] = {}
    for row in seed_rows():
        seeds.setdefault(row["answer"], set()).add(text(row))
    ids = [request.id for requests in rounds.requests for request in requests]
    assert len(set(ids)) == len(ids)
    shown: Counter[str] = Counter()
    for request in (request for requests in rounds.requests for request in requests):
        system, user = request.messages
        answer = user["content"].removeprefix("Write messages about: ")
        *lines, last = request.prefix.split("\n")
        examples = [line.removeprefix(f"{number}. {answer}: ") for number, line in enumerate(lines, 1)]
        assert system["content"] == "You write." and last == f"4. {answer}:"
        assert len(set(examples)) == 3 and set(examples) <= seeds[answer]
        shown.update(examples)
        sampling = request.sampling
        assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.7, 0.9, 60)
        assert sampling.stop == ("\n",) and 0 <= sampling.seed < 2**63
    assert set(shown) == {text(row) for row in seed_rows()}, "every seed gets its turn"


def test_later_rounds_ask_for_what_is_missing_and_rounds_end(play: Any, self_instruct: Any, seed_rows: Any) -> None:
    rounds = play(lambda request, number: sentence(request.sampling.seed) if "outage" in request.prefix else "")
    made = rounds.play(self_instruct(count=10, rounds=3), seed_rows())
    assert len(rounds.requests) == 3
    assert all("billing" in request.prefix for request in rounds.requests[1] + rounds.requests[2])
    assert max(len(requests) for requests in rounds.requests) <= 20, "at most four for each that is missing"
    assert sum(each.outcome == "kept" for each in made) == 5
    assert {each.reason for each in made} >= {"is empty"}


def test_plan_is_told_how_many_calls_there_will_be(play: Any, self_instruct: Any, seed_rows: Any) -> None:
    def short(request: Any, number: int) -> str:
        return " ".join(sentence(request.sampling.seed).split()[:10])

    told = play(short).planned(self_instruct(count=60), seed_rows())
    assert told.rows.count == 60 and told.rows.mark == "~" and len(told.rows.sample) == len(seed_rows())
    assert self_instruct(count=60).expected(Given()).usage.tokens_in is None, "without a seed nothing is known of them"


def test_few_seeds_and_awkward_ones(play: Any, self_instruct: Any, seed_rows: Any) -> None:
    seeds = seed_rows([("One line,\nand  another.", "bil ling"), ("No label here at all.", None), (" ", "outage")])
    rounds = play(lambda request, number: sentence(request.sampling.seed))
    made = rounds.play(self_instruct(count=3), seeds)
    assert rounds.requests[0][0].prefix == "1. bil ling: One line, and another.\n2. bil ling:"
    assert {each.row["answer"] for each in made} == {"bil ling"}
    assert all(each.row["parents"] == ["seed00"] for each in made)
    copied = play(lambda request, number: "no label here at all").play(self_instruct(count=3, rounds=1), seeds)
    assert all(each.outcome == "filtered" and each.row["nearest_id"] == "seed01" for each in copied)


def test_seeds_without_labels_are_refused(play: Any, self_instruct: Any, seed_rows: Any) -> None:
    with pytest.raises(RequestError, match="none of the 1 seeds has a text and an answer"):
        play(writes).play(self_instruct(), seed_rows([("x", None)]))


def test_the_numbered_list() -> None:
    assert numbered("a\nb", ()) == "1. a b:"


def test_fields_are_checked(self_instruct: Any) -> None:
    stage = self_instruct(instruction="Write about {answer} {{or not}}.")
    assert dict(stage.columns)["max_rouge"] == "float64" and stage.asks() == stage.teacher
    assert "rows" not in SelfInstruct.model_fields
    for fields, where in (
        ({"instruction": "Write {label}"}, "SelfInstruct.instruction"),
        ({"count": 0}, "SelfInstruct.count"),
        ({"novelty": 0.0}, "SelfInstruct.novelty"),
        ({"novelty": 1.5}, "SelfInstruct.novelty"),
        ({"top_p": 0.0}, "SelfInstruct.top_p"),
        ({"temperature": -1.0}, "SelfInstruct.temperature"),
        ({"examples": 0}, "SelfInstruct.examples"),
        ({"rounds": 0}, "SelfInstruct.rounds"),
    ):
        with pytest.raises(InvalidField) as caught:
            self_instruct(**fields)
        assert caught.value.where == where
    with pytest.raises(WrongKind):
        self_instruct(teacher=stage)


def test_execution_fields_and_papers(self_instruct: Any) -> None:
    stage = self_instruct()
    names = {name for name in SelfInstruct.model_fields if SelfInstruct.is_execution(name)}
    assert names == {"label", "resources", "max_failed", "concurrency"}
    assert stage.papers[0].title == "Efficacy of Machine-Generated Instructions"
