"""The general branch: new tasks exactly, instances by kind, conflicting tasks vanish, the same rows again."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import pyarrow as pa
import pytest

from graftline.stages.errors import RequestError
from graftline.stages.generate.rouge import rouge_l, words
from graftline.stages.generate.self_instruct_tasks import SelfInstructTasks
from graftline.stages.generate.tasks import WRITE
from graftline.stages.lm.scripted import sentence
from graftline.stages.rows import schema


@pytest.fixture
def stage(given: Any, teacher: Any) -> Any:
    return lambda **fields: SelfInstructTasks(**{"seeds": given(), "teacher": teacher, "count": 12, **fields})


def kind(request: Any) -> str:
    last = request.messages[0]["content"]
    if last.startswith(WRITE):
        return "write"
    return "label" if "For each label" in last else "input" if "up to five examples" in last else "kind"


def task(request: Any) -> str:
    return re.findall("Task: (.*)", f"{request.messages[-1]['content']}\n{request.messages[0]['content']}")[0]


def writes(request: Any, number: int) -> Any:
    """A teacher: lists with faults, a word of the task decides its kind, some tasks have conflicts."""
    draw = random.Random(request.sampling.seed)
    asked = kind(request)
    if asked == "write":
        items = [sentence(draw.randrange(9**9)) for _ in range(4)]
        items += [
            items[0] + " Please.",
            request.prefix.splitlines()[1][3:],
            "Too short.",
            "Describe the picture of it.",
        ]
        return " " + "\n10. ".join(items) + "\n11. A cut", "length"
    if asked == "kind":
        return "Yes." if len(task(request)) % 2 else "No."
    if asked == "label":
        return "Label: good\nInput: It works.\nLabel: bad\nInput: It does not.\nLabel: bad\nInput: \nLabel: x\nInput: x"
    conflict = "Input: one\nOutput: 1\nInput: one\nOutput: 2\nInput: two\nOutput: 2"
    fine = "Input: one\nOutput: 1\nInput: two:\nOutput: 2\nOutput: alone\nInput: none\nOutput: "
    return conflict if len(task(request)) % 3 == 0 else fine


def test_the_promises(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(writes)
    tasks, seeds = stage(system="You do tasks."), seed_rows()
    made = rounds.play(tasks, seeds)
    kept = [each.row for each in made if each.outcome == "kept"]
    reasons = Counter(each.reason for each in made)
    for reason in ("has fewer than 4 words", "has a forbidden phrase", "has no output", "ends with a colon",
                   "is more like another task than ROUGE-L 0.7", "one of its task's inputs has two outputs",
                   "has an output that is its input"):  # fmt: skip
        assert reasons[reason], reasons

    asked = {task(request) for requests in rounds.requests for request in requests if kind(request) == "kind"}
    texts = [seed["messages"][0]["content"] for seed in seeds]
    assert len(asked) == 12
    for one, other in combinations(sorted(asked), 2):
        assert rouge_l(words(one), words(other)) <= 0.7
    assert all(rouge_l(words(one), words(other)) <= 0.7 for one in asked for other in texts)

    by_task = defaultdict(list)
    for row in kept:
        by_task[row["instruction"]].append(row)
        assert row["instruction"] in asked and row["instruction"] in row["messages"][1]["content"]
        assert row["input"] in row["messages"][1]["content"] and row["answer"] == row["messages"][-1]["content"]
        assert row["messages"][0] == {"role": "system", "content": "You do tasks."}
        assert row["classification"] == bool(len(row["instruction"]) % 2)
        assert 0 <= row["max_rouge"] <= 0.7
    for instruction, rows in by_task.items():
        pairs = {(row["input"], row["answer"]) for row in rows}
        if len(instruction) % 2:
            assert pairs == {("It works.", "good"), ("It does not.", "bad"), ("", "bad")}
        else:
            assert len(instruction) % 3 and pairs == {("one", "1"), ("", "alone")}
    gone = {each.row["instruction"] for each in made if each.reason.startswith("one of its task")}
    assert gone and not gone & set(by_task), "a task with a conflict disappears entirely"

    ids = {each.row["id"] for each in made} | {seed["id"] for seed in seeds}
    assert all(row["nearest_id"] is None or row["nearest_id"] in ids for row in kept)
    assert len({each.row["id"] for each in made}) == len(made)
    assert pa.Table.from_pylist(kept, schema=schema(tasks.columns)).num_rows == len(kept)
    assert set(kept[0]) == set(tasks.columns)


def test_lists_show_seeds_and_then_machine_made_tasks(play: Any, stage: Any, seed_rows: Any) -> None:
    def slowly(request: Any, number: int) -> Any:
        return sentence(request.sampling.seed) if kind(request) == "write" else writes(request, number)

    rounds = play(slowly)
    seeds = seed_rows([(sentence(number), "x") for number in range(20)])
    made = rounds.play(stage(count=40), seeds)
    lists = [[request for request in requests if kind(request) == "write"] for requests in rounds.requests]
    human = {seed["messages"][0]["content"] for seed in seeds}
    asked = {task(request) for requests in rounds.requests for request in requests if kind(request) == "kind"}
    assert len(lists[0]) > 1 and lists[1]
    for number, requests in enumerate(lists):
        for request in requests:
            *lines, last = request.prefix.split("\n")
            shown = [line.removeprefix(f"{place}. ") for place, line in enumerate(lines, 1)]
            assert last == "9." and len(set(shown)) == 8
            assert len(set(shown) - human) == (2 if number else 0) and set(shown) <= human | asked
    assert lists[0][0].sampling.temperature == 0.7 and lists[0][0].sampling.top_p == 0.5
    for request in (request for requests in rounds.requests for request in requests):
        assert request.sampling.presence == (2.0 if kind(request) == "write" else 0.0)
    groups = {seed["id"]: seed["group"] for seed in seeds}
    for each in made:
        assert len(each.row["parents"]) >= 8, "of machine-made tasks, the seeds they come from"
        assert each.row["group"].split("|") == sorted(groups[parent] for parent in each.row["parents"])


@pytest.mark.parametrize("fault", ["write", "kind", "input"])
def test_what_cannot_be_read_goes_back_then_fails(play: Any, stage: Any, seed_rows: Any, fault: str) -> None:
    def faulty(request: Any, number: int) -> Any:
        if kind(request) == fault:
            return ""
        return (
            "No" if kind(request) == "kind" else "Name three long rivers." if kind(request) == "write" else "Output: x"
        )

    rounds = play(faulty)
    made = rounds.play(stage(count=1, rounds=1, retries=2), seed_rows())
    assert [each.outcome for each in made] == ["failed"] and made[0].reason
    assert sum(kind(request) == fault for requests in rounds.requests for request in requests) == 3
    assert made[0].row["instruction"] == ("" if fault == "write" else "Name three long rivers.")


def test_batches_and_order_do_not_matter(play: Any, stage: Any, seed_rows: Any) -> None:
    whole = play(writes).play(stage(), seed_rows())
    assert play(writes).play(stage(), seed_rows()[::-1]) == whole
    for chunk in (1, 5):
        assert play(writes, chunk).play(stage(), seed_rows()) == whole
    assert play(writes).play(stage(seed=1), seed_rows()) != whole


def test_it_ends_and_says_what_it_takes(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(lambda request, number: "No picture of it.")
    assert {each.outcome for each in rounds.play(stage(rounds=3), seed_rows())} == {"filtered"}
    assert len(rounds.requests) == 3
    told = play(writes).planned(stage(count=40, max_new_tokens=200), seed_rows())
    assert told.rows.mark == "~" and told.rows.count >= 40
    with pytest.raises(RequestError, match="none of the 1 seeds has a task"):
        play(writes).play(stage(), seed_rows([(" ", "x")]))
