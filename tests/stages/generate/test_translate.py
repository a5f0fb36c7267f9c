"""Translation: each instruction becomes one in another language, unanswered, or there is a reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graftline.pipelines import plan, run
from graftline.stages import generate, lm, read
from graftline.stages.errors import InvalidField
from graftline.stages.generate.questions import CUT_OFF, NOT_ASKED
from graftline.stages.generate.tagged import tag, tagged
from graftline.stages.generate.translate import Translate
from graftline.stages.rows import schema

from ...fake_openai import FakeOpenAI


@pytest.fixture
def stage(given: Any, teacher: Any) -> Any:
    return lambda **fields: Translate(**{"prompts": given(), "translator": teacher, "into": "Backwards", **fields})


def backwards(text: str) -> str:
    """The translation of a text that a translator is shown."""
    return "Sure: " + tag("translation", tagged(text, "text")[0][::-1])


def says(request: Any, number: int) -> str:
    return backwards(request.messages[0]["content"])


def test_each_instruction_is_translated_and_no_answer(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(says)
    prompts = seed_rows([(" Why late?\n {x} ", "rain"), ("Who pays?", None)], system="You help.")
    made = rounds.play(translate := stage(max_new_tokens=99), prompts)
    assert [each.outcome for each in made] == ["kept", "kept"]
    for each, prompt, text in zip(made, prompts, ("}x{ \n?etal yhW", "?syap ohW"), strict=True):
        row = each.row
        assert row["messages"] == [prompt["messages"][0], {"role": "user", "content": text}]
        assert (row["parents"], row["group"], row["answer"]) == ([prompt["id"]], prompt["group"], None)
        assert row["language"] == "Backwards" and row["gen"]["model"] == "teacher-1"
        assert row["gen"]["stage"] == translate.method
    assert pa.Table.from_pylist([each.row for each in made], schema=schema(translate.columns)).num_rows == 2
    ((first, _),) = rounds.requests
    (turn,) = first.messages
    assert "Backwards" in turn["content"] and tag("text", "Why late?\n {x}") in turn["content"]
    assert "rain" not in turn["content"] and "You help." not in turn["content"]
    assert (first.sampling.temperature, first.sampling.max_new_tokens) == (0.0, 99)


@pytest.mark.parametrize(
    ("answer", "outcome", "reason", "rounds"),
    [
        (tag("translation", " why was  my card charged twice for the same month?"), "filtered",
         "is the same as before it was translated", 1),
        (" ", "failed", "it is empty", 3),
        (tag("translation", " "), "failed", "it is empty", 3),
        ("I’m sorry, but I can’t.", "failed", "it is a refusal", 3),
        (tag("translation", "As an AI, I do not translate."), "failed", "it is a refusal", 3),
        (("<translation>Warum wurde", "length"), "failed", CUT_OFF, 3),
        (("<translation>Warum?</translation> Because", "length"), "kept", "", 1),
        ("Warum?", "failed", "nothing in it stands between <translation> and </translation>", 3),
        (tag("translation", "a") + tag("translation", "b"), "failed",
         "it has several <translation>, and one is asked for", 3),
        (tag("translation", "a <translation>b</translation> c"), "failed",
         "it has several <translation>, and one is asked for", 3),
        (tag("translation", "\ufffd 漢字"), "failed", "it has broken characters", 3),
        (("", "cancelled"), "failed", NOT_ASKED, 1),
    ],
)  # fmt: skip
def test_what_is_no_translation(
    play: Any, stage: Any, seed_rows: Any, answer: Any, outcome: str, reason: str, rounds: int
) -> None:
    player = play(lambda request, number: answer)
    (made,) = player.play(stage(retries=2), seed_rows()[:1])
    assert (made.outcome, made.reason, len(player.requests)) == (outcome, reason, rounds)
    assert made.row["answer"] is None and made.row["parents"] == ["seed00"]


def test_what_goes_back_may_come_right(play: Any, stage: Any, seed_rows: Any) -> None:
    player = play(lambda request, number: says(request, number) if number else "no tags")
    (made,) = player.play(stage(), seed_rows([("Who?", None)]))
    assert (made.outcome, made.row["messages"][-1]["content"], made.row["gen"]["round"]) == ("kept", "?ohW", 1)
    assert "nothing in it stands between" in player.requests[1][0].messages[-1]["content"]


def test_what_is_not_asked(play: Any, stage: Any, seed_rows: Any) -> None:
    earlier = [("user", "Hi"), ("assistant", "Hello."), ("user", "Who?")]
    messages = [{"role": role, "content": content} for role, content in earlier]
    rows = [
        *seed_rows([(" ", "answer")]),
        {"id": "zz", "parents": [], "group": None, "messages": messages, "answer": None},
        {"id": "zzz", "parents": [], "group": None, "messages": None, "answer": None},
    ]
    player = play(says)
    made = player.play(stage(), rows)
    assert [(each.outcome, each.reason) for each in made] == [
        ("failed", "has no instruction"),
        ("filtered", "has earlier turns, whose answers are not translated"),
        ("failed", "has no instruction"),
    ]
    assert player.requests == [] and {each.row["language"] for each in made} == {None}


def test_refusals_may_be_named_otherwise(play: Any, stage: Any, seed_rows: Any) -> None:
    player = play(lambda request, number: tag("translation", "I'm sorry, but who?"))
    (made,) = player.play(stage(refusals=()), seed_rows()[:1])
    assert made.outcome == "kept"


def test_batches_and_order_do_not_matter(play: Any, stage: Any, seed_rows: Any) -> None:
    whole = play(says).play(stage(), seed_rows())
    assert play(says, 2).play(stage(), seed_rows()[::-1]) == whole and len(whole) == 7
    assert play(says).play(stage(), seed_rows()[2:4]) == whole[2:4]


def test_a_plan_is_within_a_factor_of_two(play: Any, stage: Any, seed_rows: Any) -> None:
    told = play(says).planned(stage(), seed_rows())
    assert (told.rows.count, told.rows.mark) == (7, "<=")
    assert {(row["answer"], row["language"]) for row in told.rows.sample} == {(None, "Backwards")}
    earlier = {"messages": [{"role": role, "content": "Well?"} for role in ("user", "assistant", "user")]}
    half = play(says).planned(stage(retries=0), [*seed_rows(), *({**row, **earlier} for row in seed_rows())])
    assert half.rows.count == half.usage.requests == 7


def test_a_language_is_named(stage: Any) -> None:
    with pytest.raises(InvalidField, match="names no language") as caught:
        stage(into=" ")
    assert caught.value.where == "Translate.into"


@pytest.mark.real
def test_the_cross_lingual_copy_in_a_run(tmp_path: Path) -> None:
    """A cheap model translates, a strong one answers what the cheap one wrote, and neither is asked twice."""
    (tmp_path / "seeds.jsonl").write_text("".join(f'{{"q": "{text}", "a": "me"}}\n' for text in ("Who?", "Why?", "oo")))

    def answer(body: dict[str, Any]) -> str:
        asked: str = body["messages"][-1]["content"]
        return backwards(asked) if body["model"] == "cheap" else f"Natively, to {asked}"

    def copied(url: str, top_p: float = 1.0) -> generate.TeacherResponses:
        cheap, strong = (lm.Endpoint(name, url=url) for name in ("cheap", "strong"))
        prompts = read.Jsonl(path="seeds.jsonl", prompt="{q}", answer="{a}", group="q")
        translated = generate.Translate(prompts=prompts, translator=cheap, into="Backwards", retries=0)
        return generate.TeacherResponses(
            prompts=translated, teacher=strong, keep=("language",), max_new_tokens=8, top_p=top_p
        )

    store = str(tmp_path / "store")
    with FakeOpenAI(models=("cheap", "strong"), answer=answer) as fake:

        def asked() -> Counter[str]:
            return Counter(body["model"] for _, status, body in fake.log if status == 200 and body["max_tokens"] > 1)

        planned = plan(copied(fake.url), base=tmp_path)
        done = run(copied(fake.url), store, base=tmp_path, address="here")
        assert asked() == {"cheap": 3, "strong": 2}
        run(copied(fake.url, 0.5), store, base=tmp_path, address="here")
        assert asked() == {"cheap": 3, "strong": 4}, "what was translated is not translated again"
    steps = {step.name: step for step in planned.steps}
    both = steps["Translate"], steps["TeacherResponses"]
    assert [(step.rows, step.mark, step.calls.requests) for step in both] == [(3, "<=", 3)] * 2
    assert planned.calls.requests == 6 and all(step.calls.tokens_in and step.calls.tokens_out for step in both)
    assert planned.calls.tokens_in == sum(step.calls.tokens_in or 0 for step in both)
    rows = done["result"].rows().to_pylist()
    assert {(row["group"], *(turn["content"] for turn in row["messages"])) for row in rows} == {
        ("Who?", "?ohW", "Natively, to ?ohW"),
        ("Why?", "?yhW", "Natively, to ?yhW"),
    }
    for row in rows:
        assert (row["language"], row["reference"], row["gen"]["model"]) == ("Backwards", None, "strong")
    (line,) = (line for line in done.record["stages"] if line["name"] == "Translate")
    assert line["rows"]["filtered"] == {"is the same as before it was translated": 1}
