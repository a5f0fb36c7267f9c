"""Expansion: categories hit their numbers, nothing untagged or near a seed is kept, the same rows again."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField, MissingColumn, RequestError
from graftline.stages.generate.expand import Expand
from graftline.stages.generate.expansion import apportioned
from graftline.stages.generate.questions import NOT_ASKED
from graftline.stages.generate.rouge import rouge_l, words
from graftline.stages.generate.tagged import tag, tagged
from graftline.stages.lm.scripted import sentence
from graftline.stages.rows import schema


@pytest.fixture
def stage(given: Any, teacher: Any) -> Any:
    return lambda **fields: Expand(**{"seeds": given(), "teacher": teacher, "count": 20, **fields})


def writes(request: Any, number: int) -> Any:
    """A teacher with every fault: untagged, cut off, copies of seeds and of itself."""
    draw = random.Random(request.sampling.seed)
    if draw.random() < 0.4:
        return sentence(draw.randrange(9**9))
    shown = tagged(request.messages[0]["content"])[:2]
    texts = [sentence(draw.randrange(9**9)) for _ in range(3)] + [draw.choice(shown), sentence(draw.randrange(4)), ""]
    draw.shuffle(texts)
    return "Here you are: " + "\n".join(tag("answer", text) for text in texts[:5]) + "<answer>and", "length"


def paired(request: Any, number: int) -> str:
    draw = random.Random(request.sampling.seed)
    both = ((sentence(draw.randrange(9**9)), sentence(draw.randrange(9**9))) for _ in range(4))
    blocks = [tag("answer", tag("instruction", one) + tag("response", other)) for one, other in both]
    return "".join([*blocks, tag("answer", "neither")])


def text(row: Any) -> str:
    return next(turn["content"] for turn in row["messages"] if turn["role"] == "user")


def test_categories_hit_their_numbers_and_nothing_is_alike(play: Any, stage: Any, seed_rows: Any) -> None:
    expand = stage(by="answer", shares={"billing": 3.0, "outage": 1.0}, count=21, retries=0)
    rounds = play(writes)
    made = rounds.play(expand, seeds := seed_rows(system="Name it."))
    kept = [each.row for each in made if each.outcome == "kept"]
    counts = Counter(row["category"] for row in kept)
    assert counts == {"billing": 16, "outage": 5} and {row["op"] for row in kept} == {"expand"}
    everything = [text(seed) for seed in seeds] + [text(row) for row in kept]
    for one, other in combinations(range(len(everything)), 2):
        if other >= len(seeds):
            assert rouge_l(words(everything[one]), words(everything[other])) <= 0.7
    categories = {seed["id"]: seed["answer"] for seed in seeds}
    for row in kept:
        assert len(row["parents"]) == 2 and {categories[each] for each in row["parents"]} == {row["category"]}
        assert row["messages"] == [{"role": "system", "content": "Name it."}, {"role": "user", "content": text(row)}]
        assert row["answer"] is None, "it is not answered yet"
    reasons = Counter(each.reason for each in made)
    for reason in ("is empty", "repeats an example", "is more like another instruction than ROUGE-L 0.7",
                   "nothing in it stands between <answer> and </answer>"):  # fmt: skip
        assert reasons[reason], reasons
    assert {each.outcome for each in made if each.reason.startswith("nothing in it")} == {"failed"}
    assert pa.Table.from_pylist(kept, schema=schema(expand.columns)).num_rows == 21
    assert set(kept[0]) == set(expand.columns) and len({each.row["id"] for each in made}) == len(made)
    assert len(rounds.requests) > 1


def test_what_has_no_tags_goes_back_and_then_fails(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(lambda request, number: "No tags here at all." if number < 2 else writes(request, number))
    made = rounds.play(stage(count=1, rounds=1, retries=1), seed_rows())
    assert [each.outcome for each in made] == ["failed"] and len(rounds.requests) == 2
    assert rounds.requests[1][0].messages[1]["content"] == "No tags here at all."
    cancelled = play(lambda request, number: ("", "cancelled")).play(stage(count=1, rounds=1), seed_rows())
    assert [each.reason for each in cancelled] == [NOT_ASKED]


def test_pairs_have_responses(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(paired)
    seeds = [*seed_rows(), *seed_rows([("x " * 9, "y")] * 9 + [("No answer to this one yet", None)])[9:]]
    made = rounds.play(stage(pairs=True, count=8), seeds)
    kept = [each.row for each in made if each.outcome == "kept"]
    assert len(kept) == 8 and {row["op"] for row in kept} == {"pair"} and {row["category"] for row in kept} == {None}
    assert all(row["answer"] == row["messages"][-1]["content"] and row["answer"] for row in kept)
    prompt = rounds.requests[0][0].messages[0]["content"]
    assert set(tagged(prompt, "response")) <= {"billing", "outage"} and len(tagged(prompt, "response")) == 2
    assert all(
        "No answer" not in request.messages[0]["content"] for requests in rounds.requests for request in requests
    )


def test_rounds_end_and_ask_for_what_is_missing(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(lambda request, number: tag("answer", "Why was my card charged twice for the same month?"))
    made = rounds.play(stage(count=3, rounds=4), seed_rows())
    assert len(rounds.requests) == 4 and all(len(requests) <= 3 for requests in rounds.requests)
    assert {each.outcome for each in made} == {"filtered"}


@pytest.mark.parametrize("fields", [{}, {"pairs": True}])
def test_a_plan_is_within_a_factor_of_two(play: Any, stage: Any, seed_rows: Any, fields: dict[str, Any]) -> None:
    def five(request: Any, number: int) -> str:
        draw = random.Random(request.sampling.seed)
        texts = [" ".join(sentence(draw.randrange(9**9)).split()[:10]) for _ in range(5)]
        return "\n".join(
            tag("answer", f"{tag('instruction', each)}{tag('response', 'outage')}" if fields else each)
            for each in texts
        )

    told = play(five).planned(stage(count=40, **fields), seed_rows())
    assert told.rows.count == 40 and told.rows.mark == "~"
    assert all(row["messages"][-1]["role"] == ("assistant" if fields else "user") for row in told.rows.sample)


def test_batches_and_order_do_not_matter(play: Any, stage: Any, seed_rows: Any) -> None:
    whole = play(writes).play(stage(by="answer"), seed_rows())
    assert play(writes).play(stage(by="answer"), seed_rows()[::-1]) == whole
    for chunk in (1, 2):
        assert play(writes, chunk).play(stage(by="answer"), seed_rows()) == whole
    assert play(writes).play(stage(by="answer", seed=1), seed_rows()) != whole


def test_what_is_refused(play: Any, stage: Any, seed_rows: Any) -> None:
    with pytest.raises(InvalidField, match="of the categories") as caught:
        stage(shares={"billing": 1.0})
    assert caught.value.where == "Expand.shares"
    with pytest.raises(InvalidField):
        stage(by="answer", shares={"billing": 0.0})
    with pytest.raises(MissingColumn):
        stage(by="queue")
    with pytest.raises(RequestError, match="no seed can be shown for the category 'sales'") as missing:
        play(writes).play(stage(by="answer", shares={"sales": 1.0, "billing": 1.0}), seed_rows())
    assert "billing, outage" in str(missing.value)
    with pytest.raises(RequestError, match="no seed has an instruction and an answer"):
        play(writes).play(stage(pairs=True), seed_rows([("Why?", None)]))


@cases(st.integers(0, 200), st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 9), min_size=1))
def test_shares_are_hit_to_within_one(count: int, shares: dict[str, float]) -> None:
    total = sum(shares.values())
    if total < 1e-6:
        return
    found = apportioned(count, shares)
    assert sum(found.values()) == count
    assert all(abs(number - count * shares[name] / total) < 1 + 1e-9 for name, number in found.items())
