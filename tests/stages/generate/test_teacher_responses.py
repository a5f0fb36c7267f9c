"""A teacher's answers: prompts untouched, every candidate accounted for, the same rows however they are batched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graftline.pipelines import run
from graftline.stages import Llm, generate, read
from graftline.stages.errors import InvalidField, MissingColumn
from graftline.stages.expected import Given
from graftline.stages.generate.questions import CUT_OFF, NOT_ASKED
from graftline.stages.generate.teacher_responses import TeacherResponses
from graftline.stages.lm.scripted import sentence
from graftline.stages.rows import schema


@pytest.fixture
def stage(given: Any, teacher: Any) -> Any:
    return lambda **fields: TeacherResponses(**{"prompts": given(), "teacher": teacher, **fields})


def says(request: Any, number: int) -> str:
    return f" {sentence(request.sampling.seed)}\n"


def test_prompts_stay_and_each_candidate_is_a_row(play: Any, stage: Any, seed_rows: Any) -> None:
    odd = "Ünï  code,\n\ttabs and  spaces, kept ｆｕｌｌ ’"
    prompts = seed_rows([(odd, "an older answer"), ("Who are you?", None)], system="Be brief. ")
    made = play(says).play(answers := stage(n=3), prompts)
    rows = [each.row for each in made]
    assert Counter(each.outcome for each in made) == {"kept": 6} and len({row["id"] for row in rows}) == 6
    by_prompt = {prompt["id"]: prompt for prompt in prompts}
    assert Counter(row["parents"][0] for row in rows) == {"seed00": 3, "seed01": 3}
    for row in rows:
        prompt = by_prompt[row["parents"][0]]
        before = [turn for turn in prompt["messages"] if turn["role"] != "assistant"]
        assert row["messages"][:-1] == before and row["group"] == prompt["group"]
        assert row["messages"][-1] == {"role": "assistant", "content": row["answer"]}
        assert row["answer"] == row["answer"].strip() != "an older answer"
        assert row["reference"] == prompt["answer"]
        assert row["gen"]["stage"] == answers.method and row["gen"]["model"] == "teacher-1"
    assert pa.Table.from_pylist(rows, schema=schema(answers.columns)).num_rows == 6
    assert set(rows[0]) == set(answers.columns)


def test_an_older_answer_is_not_shown(play: Any, stage: Any, seed_rows: Any) -> None:
    rounds = play(says)
    rounds.play(stage(temperature=0.3, top_p=0.5, max_new_tokens=9), seed_rows([("Q?", "an older answer")]))
    ((request,),) = rounds.requests
    assert request.messages == ({"role": "user", "content": "Q?"},) and request.prefix == ""
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.stop) == (0.3, 0.5, 9, ())


@pytest.mark.parametrize(
    ("given_", "outcome", "reason"),
    [
        (("A whole answer", "length"), "filtered", CUT_OFF),
        ((" \n", "stop"), "filtered", "is empty"),
        (("", "cancelled"), "failed", NOT_ASKED),
        ("I’m sorry, but I can’t do that.", "filtered", "is a refusal"),
        ("Well. As an  AI I have no opinion.", "filtered", "is a refusal"),
        ("As an aid to memory, write it down.", "kept", ""),
        ("They said it plainly. " * 10 + "I'm sorry, but that is it.", "kept", ""),
    ],
)
def test_what_is_no_answer(play: Any, stage: Any, seed_rows: Any, given_: Any, outcome: str, reason: str) -> None:
    (made,) = play(lambda request, number: given_).play(stage(), seed_rows([("Q?", None)]))
    assert (made.outcome, made.reason) == (outcome, reason)


def test_equal_candidates_are_kept_once(play: Any, stage: Any, seed_rows: Any) -> None:
    made = play(lambda request, number: "Yes.").play(stage(n=3), seed_rows([("A?", None), ("B?", None)]))
    assert [each.outcome for each in made] == ["kept", "filtered", "filtered"] * 2
    assert {each.reason for each in made} == {"", "is the same as another candidate"}
    assert len({each.row["id"] for each in made}) == 6


def test_a_row_without_a_question_has_failed(play: Any, stage: Any, seed_rows: Any) -> None:
    empty = {"id": "zz", "parents": [], "group": None, "messages": None, "answer": "no question"}
    failed, kept = play(says).play(stage(), [*seed_rows([("Q?", None)]), empty])
    assert (failed.outcome, failed.reason, failed.row["parents"]) == ("failed", "has no prompt", ["zz"])
    assert kept.outcome == "kept"


def test_batches_order_and_other_prompts_do_not_matter(play: Any, stage: Any, seed_rows: Any) -> None:
    whole = play(says).play(stage(n=2), seed_rows())
    for chunk in (1, 3):
        assert play(says, chunk).play(stage(n=2), seed_rows()) == whole
    assert play(says).play(stage(n=2), seed_rows()[::-1]) == whole
    fewer = play(says).play(stage(n=2), seed_rows()[2:4])
    assert fewer == [made for made in whole if made.row["parents"][0] in ("seed02", "seed03")]
    assert play(says).play(stage(n=2, seed=1), seed_rows()) != whole


def test_columns_that_are_kept(play: Any, stage: Any, given: Any, seed_rows: Any) -> None:
    prompts = given(has={"language": "string", "weight": "float64"})
    answers = stage(prompts=prompts, keep=("weight", "language"))
    assert (answers.columns["weight"], answers.columns["language"]) == ("float64", "string")
    rows = [{**row, "weight": 0.5, "language": None} for row in seed_rows([("Q?", None), ("", None)])]
    made = play(says).play(answers, rows)
    assert [(each.row["weight"], each.row["language"]) for each in made] == [(0.5, None)] * 2
    assert {each.outcome for each in made} == {"kept", "failed"}
    assert all(set(each.row) == set(answers.columns) for each in made)
    with pytest.raises(MissingColumn, match=r"'language'.*Translate"):
        stage(keep=("language",))
    for taken in (("answer",), ("reference",), ("weight", "weight")):
        with pytest.raises(InvalidField, match="is taken") as caught:
            stage(prompts=prompts, keep=taken)
        assert caught.value.where == f"TeacherResponses.keep.{len(taken) - 1}"


def test_a_plan_is_within_a_factor_of_two(play: Any, stage: Any, seed_rows: Any) -> None:
    told = play(lambda request, number: "word " * 30).planned(stage(n=3, max_new_tokens=64), seed_rows())
    assert (told.rows.count, told.rows.mark, told.usage.requests) == (21, "<=", 21)
    assert told.rows.distinct(lambda row: str(row["messages"][:-1])) == 7, "a sample has all answers to a prompt"


def test_fields(stage: Any) -> None:
    assert stage().expected(Given()).rows.count is None
    with pytest.raises(InvalidField, match="all the same") as caught:
        stage(n=2, temperature=0.0)
    assert caught.value.where == "TeacherResponses.n"


@pytest.mark.real
def test_in_a_run(tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text('{"q": "Who?"}\n{"q": "Where to?"}\n{"q": "When?"}\n')
    prompts = read.Jsonl(path="seeds.jsonl", prompt="{q}")
    answers = generate.TeacherResponses(
        prompts=prompts, teacher=Llm("tiny", engine="scripted"), n=2, max_new_tokens=24, max_failed=0.0
    )
    made = run(answers, str(tmp_path / "store"), base=tmp_path, address="here")["result"]
    rows, account = made.rows().to_pylist(), made.manifest["rows"]
    assert account["created"] == 6 and account["in"] == 3 and made.manifest["calls"]["requests"] == 6
    assert len(rows) + sum(account["filtered"].values()) == 6 and set(account["filtered"]) <= {CUT_OFF}
    assert {row["messages"][0]["content"] for row in rows} <= {"Who?", "Where to?", "When?"} and len(rows) >= 2
