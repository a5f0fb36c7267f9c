"""Questions and answers of documents: each finds its passage, names what it rests on, and is new."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from typing import Any

import pyarrow as pa
import pytest

from graftline.stages.errors import InvalidField, MissingColumn
from graftline.stages.generate.doc_qa import DocQa
from graftline.stages.generate.questions import CUT_OFF, NOT_ASKED
from graftline.stages.generate.rouge import rouge_l, words
from graftline.stages.rows import schema

FACTS = {
    "mill": ("The mill of Oldmere was built by Ada Finch in 1871.", "Its wheel is made of black oak."),
    "bridge": ("The bridge at Tarn has eleven arches.", "A toll of two pence was asked until 1902."),
    "school": ("Kestrel School teaches forty pupils.", "Its bell was cast in Lund."),
}
QUESTIONS = {
    "mill": ("Who built the mill of Oldmere?", "What is the wheel of the mill in Oldmere made of?"),
    "bridge": ("How many arches does the bridge at Tarn have?", "Until when was a toll of two pence asked at Tarn?"),
    "school": ("How many pupils does Kestrel School teach?", "Where was the bell of Kestrel School cast?"),
}


def about(text: str) -> str:
    return next(name for name in FACTS if FACTS[name][0] in text)


def writes(request: Any, round: int) -> str:
    """A teacher that does as it is told."""
    prompt = request.messages[0]["content"]
    if "Question: " not in prompt:
        return "\n".join(f"{number}. {question}" for number, question in enumerate(QUESTIONS[about(prompt)], 1))
    question = re.search("Question: (.*)", prompt)[1]  # type: ignore[index]
    name, place = next((name, asked.index(question)) for name, asked in QUESTIONS.items() if question in asked)
    number = next(line for line in prompt.splitlines() if FACTS[name][0] in line)[1]
    return f"{FACTS[name][place]} [{number}]"


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    return [
        {"id": f"doc-{name}", "parents": [], "group": f"g-{name}", "answer": None, "title": name.title(),
         "messages": [{"role": "user", "content": " ".join(facts)}]}
        for name, facts in FACTS.items()
    ]  # fmt: skip


@pytest.fixture
def stage(given: Any, teacher: Any) -> Any:
    has = {"title": "string"}
    return lambda **fields: DocQa(**{"documents": given(has=has), "teacher": teacher, "count": 2, **fields})


def asked(row: Any) -> str:
    return str(row["messages"][0]["content"])


def test_rows_of_documents(play: Any, stage: Any, documents: Any) -> None:
    rounds = play(writes)
    made = rounds.play(qa := stage(top_k=2), documents)
    rows = [each.row for each in made if each.outcome == "kept"]
    assert len(rows) == 6 == len(made) and [len(requests) for requests in rounds.requests] == [3, 6]
    for row in rows:
        name = row["group"].removeprefix("g-")
        place = QUESTIONS[name].index(asked(row))
        assert row["answer"] == row["messages"][1]["content"] == FACTS[name][place], "no references in the answer"
        assert row["parents"] == [f"doc-{name}"] and row["evidence"] == [f"doc-{name}:0"] and row["grounded"] == 1.0
        assert row["gen"]["stage"] == qa.method and row["gen"]["round"] == 1
    for request in rounds.requests[1]:
        assert len(re.findall(r"^\[\d\] ", request.messages[0]["content"], re.MULTILINE)) in (1, 2)
        assert request.sampling.temperature == 0.0
    before: dict[str, str] = {}
    for row in rows:
        scores = {name: rouge_l(words(asked(row)), words(other)) for name, other in before.items()}
        assert row["max_rouge"] == max(scores.values(), default=0.0)
        assert row["nearest_id"] is None or scores[row["nearest_id"]] == row["max_rouge"]
        before[row["id"]] = asked(row)
    assert pa.Table.from_pylist(rows, schema=schema(qa.columns)).num_rows == 6 and set(rows[0]) == set(qa.columns)


def test_what_it_may_rest_on_joins_groups(play: Any, stage: Any, documents: Any) -> None:
    def rests_on_two(request: Any, round: int) -> str:
        return re.sub(r"\[\d\]$", "[1] [2]", writes(request, round))

    rows = [each.row for each in play(rests_on_two).play(stage(grounded=0.0), documents) if each.outcome == "kept"]
    two = [row for row in rows if len(row["parents"]) == 2]
    assert two, "questions about the mill find the school, too"
    for row in two:
        assert row["group"].split("|") == sorted(parent.replace("doc-", "g-") for parent in row["parents"])
        assert len(row["evidence"]) == 2


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("Who built the mill of Oldmere according to the passage?", "points to the passage"),
        ("Who built the mill of Oldmere, then?", "is more like another question than ROUGE-L 0.7"),
        ("Why not?", "has fewer than 3 words"),
        ("Кто построил мельницу Oldmere?".replace("Oldmere", "там"), "has no word in a-z and 0-9"),
        ("How many pupils are taught at Kestrel School?", "does not find its own passage among 1"),
        ("Which planet spins fastest?", "does not find its own passage among 1"),
    ],
)
def test_questions_that_are_not_kept(play: Any, stage: Any, documents: Any, question: str, reason: str) -> None:
    def teacher(request: Any, round: int) -> str:
        of_mill = round == 0 and FACTS["mill"][0] in request.messages[0]["content"]
        return f"1. {QUESTIONS['mill'][0]}\n2. {question}" if of_mill else writes(request, round)

    made = play(teacher).play(stage(top_k=1), documents[:1] + documents[2:])
    mill = [each for each in made if each.row["parents"] == ["doc-mill"]]
    assert {each.reason: asked(each.row) for each in mill}.get(reason) == question
    assert Counter(each.outcome for each in mill) == {"kept": 1, "filtered": 1}


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        ("NOT FOUND", "filtered", "the passages do not answer it"),
        (("It was Ada Finch [1]", "length"), "filtered", CUT_OFF),
        (("", "cancelled"), "failed", NOT_ASKED),
        ("According to the passage it was Ada Finch [1].", "filtered", "points to the passage"),
        (
            "Nobody remembers anything, sorry [1]",
            "filtered",
            "fewer than 0.5 of its words are in the passages it names",
        ),
        ("It was Ada Finch.", "failed", "it names no passage in brackets, such as [1]"),
        ("It was Ada Finch [7].", "failed", "there is no passage [7]"),
        ("It was built by Ada Finch [1].", "kept", ""),
    ],
)
def test_answers(play: Any, stage: Any, documents: Any, answer: Any, outcome: str, reason: str) -> None:
    rounds = play(
        lambda request, round: (
            answer if "Question: " in request.messages[0]["content"] else "1. Who built it, Ada Finch of Oldmere?"
        )
    )
    (made,) = rounds.play(stage(retries=2), documents[:1])
    assert (made.outcome, made.reason) == (outcome, reason)
    assert made.row["parents"] == ["doc-mill"] and asked(made.row) == "Who built it, Ada Finch of Oldmere?"
    back = outcome == "failed" and reason != NOT_ASKED
    assert len(rounds.requests) == (4 if back else 2), "what cannot be read goes back twice"


def test_lists_that_cannot_be_read_go_back_then_fail(play: Any, stage: Any, documents: Any) -> None:
    rounds = play(lambda request, round: "I would rather not." if round < 2 else writes(request, round))
    (failed, *more) = rounds.play(stage(retries=1), documents[:1])
    assert not more and failed.outcome == "failed" and "question mark" in failed.reason
    assert failed.row["evidence"] == ["doc-mill:0"] and failed.row["answer"] is None
    again = play(rounds.answer).play(stage(retries=2), documents[:1])
    assert [each.outcome for each in again] == ["kept", "kept"]


def test_no_two_kept_questions_are_alike_over_all_passages(play: Any, stage: Any, documents: Any) -> None:
    copies = [{**row, "id": f"{row['id']}-{copy}"} for copy in "ab" for row in documents]
    made = play(writes).play(stage(), copies)
    kept = [asked(each.row) for each in made if each.outcome == "kept"]
    assert len(kept) == 6 and len(made) == 12
    assert max(rouge_l(words(one), words(other)) for one, other in combinations(kept, 2)) <= 0.7
    ids = {each.row["id"] for each in made}
    assert all(each.row["nearest_id"] in ids for each in made if each.outcome == "filtered")


def test_batches_and_order_do_not_matter(play: Any, stage: Any, documents: Any) -> None:
    def careless(request: Any, round: int) -> Any:
        return "no" if request.sampling.seed % 2 == 0 else writes(request, round)

    whole = play(careless).play(stage(retries=1), documents)
    assert {each.outcome for each in whole} == {"kept", "failed"}
    assert play(careless).play(stage(retries=1), documents[::-1]) == whole
    for chunk in (1, 2):
        assert play(careless, chunk).play(stage(retries=1), documents) == whole


def test_tags_passages_and_empty_documents(play: Any, stage: Any, documents: Any) -> None:
    long = {**documents[0], "messages": [{"role": "user", "content": " ".join(f"w{number}" for number in range(60))}]}
    empty = {**documents[1], "messages": [{"role": "user", "content": " "}]}
    rounds = play(lambda request, round: "1. What is w1 about here?")
    failed = rounds.play(stage(tags=("title",), passage_words=20, retries=0), [long, empty])[0]
    assert (failed.outcome, failed.reason) == ("failed", "the document has no text")
    prompts = [request.messages[0]["content"] for request in rounds.requests[0]]
    assert len(prompts) == 3 and all("\ntitle: Mill\nw" in prompt for prompt in prompts)


def test_fields(stage: Any) -> None:
    with pytest.raises(MissingColumn, match="place"):
        stage(tags=("place",))
    with pytest.raises(InvalidField):
        stage(grounded=1.5)


def test_a_plan_is_within_a_factor_of_two(play: Any, stage: Any, documents: Any) -> None:
    def talks(request: Any, round: int) -> str:
        said = writes(request, round)
        return said if said.startswith("1.") else " ".join([said] * 4)

    # Long passages: what a second try adds to a request is then small beside it, and none is made here.
    long = [
        {**row, "messages": [{**turn, "content": " ".join([turn["content"]] * 5)} for turn in row["messages"]]}
        for row in documents
    ]
    told = play(talks).planned(stage(passage_words=400), long)
    assert (told.rows.count, told.rows.mark) == (6, "<=") and len(told.rows.sample) == 1
