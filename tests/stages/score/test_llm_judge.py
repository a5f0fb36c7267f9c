"""The judge's numbers arrive as it meant them; nonsense is missing, never a number."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from graftline.stages.errors import InvalidField
from graftline.stages.lm.engine import Request
from graftline.stages.lm.llm import Llm
from graftline.stages.score import LlmJudge
from graftline.stages.score.llm_judge import mean_of_scale

from .conftest import Asking, talk

TWO = {"truth": "is it true?", "style": "is it well written?"}
ROWS = [
    {"id": "a", "messages": talk("2 + 1?", "3")},
    {"id": "b", "messages": talk("2 + 1?", "nonsense")},
    {"id": "c", "messages": talk("no answer")},
    {"id": "d", "messages": None},
    {"id": "e", "messages": talk("hi", "ho", "2 + 2?", "4")},
]


def judge(given_rows: Any, **fields: Any) -> LlmJudge:
    return LlmJudge(rows=given_rows(), judge=Llm("tiny"), **{"dimensions": TWO, **fields})


def reply(request: Request) -> str:
    if "nonsense" in request.messages[1]["content"]:
        return "I would rather talk about the weather."
    return 'Here: {"truth": 8, "style": 5, "why": "right"}'


def test_scores_mean_reason_and_who_judged(given_rows: Any, table: Any, told: Any) -> None:
    stage = judge(given_rows)
    context = told(reply)
    found = stage.score_rows(table(ROWS), context)
    assert set(found) == set(stage.columns_added())
    assert found["judge"] == [6.5, None, None, None, 6.5]
    assert found["judge_truth"] == [8.0, None, None, None, 8.0]
    assert found["judge_style"] == [5.0, None, None, None, 5.0]
    assert found["judge_why"][0] == "right" and found["judge_why"][2] == "has no answer to judge"
    assert found["judge_why"][1] == "no score: it holds no JSON object"
    assert set(found["judge_by"]) == {f"told@{stage.rubric}"}
    assert len(context.opened.asked) == 3 + stage.retries, "only what could not be read is asked again"
    assert stage.rubric != judge(given_rows, highest=5).rubric


@pytest.mark.parametrize(
    "text",
    [
        "", "8", "{}", '{"truth": 8}', '{"truth": 8, "style": "5"}', '{"truth": 8, "style": 11}',
        '{"truth": 0, "style": 5}',
        '{"truth": NaN, "style": 5}', '{"truth": true, "style": 5}', '{"truth": null, "style": 5}', '[{"truth": 8}]',
        '{"truth": 1e400, "style": 5}',
    ],
)  # fmt: skip
def test_what_does_not_fit_is_missing(given_rows: Any, table: Any, told: Any, text: str) -> None:
    found = judge(given_rows, retries=1).score_rows(table(ROWS[:1]), told(lambda request: text))
    assert found["judge"] == found["judge_truth"] == found["judge_style"] == [None]
    assert found["judge_why"][0].startswith("no score: ")


def test_the_batch_does_not_matter(given_rows: Any, table: Any, told: Any) -> None:
    def by_length(request: Request) -> str:
        return json.dumps({"truth": len(request.messages[1]["content"]) % 10 + 1, "style": 1})

    stage, data = judge(given_rows), table(ROWS)
    whole = stage.score_rows(data, told(by_length))["judge"]
    alone = [stage.score_rows(data.slice(index, 1), told(by_length))["judge"][0] for index in range(len(ROWS))]
    assert whole == alone


def test_what_the_judge_sees(given_rows: Any, table: Any, told: Any) -> None:
    context = told(reply)
    rows = [{**ROWS[4], "answer": "four"}]
    stage = judge(given_rows, reference="answer", lowest=0, highest=5)
    stage.score_rows(table(rows), context)
    system, user = context.opened.asked[0].messages
    assert system["role"] == "system"
    for part in ("user: hi\n\nassistant: ho\n\nuser: 2 + 2?", "\n4\n</answer", "\nfour\n</reference",
    "- truth: is it true?",
                 "from 0 (worst) to 5 (best)", '"style": …'):  # fmt: skip
        assert part in user["content"]
    assert context.opened.asked[0].sampling.temperature == 0


def test_the_expected_score(given_rows: Any, table: Any) -> None:
    class Sure:
        model = "sure"

        def choice_logprobs(self, prompts: Any, choices: Any) -> list[list[float]]:
            likely = ["3" if "true?" in prompt[1]["content"] else "2" for prompt in prompts]
            return [
                [math.log(0.7 if choice == best else 0.1) for choice in scale]
                for scale, best in zip(choices, likely, strict=True)
            ]

    found = judge(given_rows, read="expected", highest=3).score_rows(table(ROWS[:3]), Asking(Sure()))
    truth, style = (0.1 * 1 + 0.1 * 2 + 0.7 * 3) / 0.9, (0.1 * 1 + 0.7 * 2 + 0.1 * 3) / 0.9
    assert found["judge_truth"] == [pytest.approx(truth)] * 2 + [None]
    assert found["judge_style"] == [pytest.approx(style)] * 2 + [None]
    assert found["judge"][0] == pytest.approx((truth + style) / 2)


def test_a_real_model_judges_the_same_in_any_batch(given_rows: Any, table: Any, tiny: Asking) -> None:
    stage, data = judge(given_rows, read="expected", highest=4), table(ROWS)
    whole = stage.score_rows(data, tiny)["judge"]
    assert [value is None for value in whole] == [False, False, True, True, False]
    for index in (0, 1, 4):
        assert 1 <= whole[index] <= 4
        assert stage.score_rows(data.slice(index, 1), tiny)["judge"][0] == pytest.approx(whole[index], abs=1e-4)


def test_the_mean_of_a_scale() -> None:
    assert mean_of_scale([0.0, 0.0], 1) == 1.5
    assert mean_of_scale([-1000.0, -900.0], 4) == pytest.approx(5)
    assert mean_of_scale([-math.inf, 0.0], 0) == 1
    assert mean_of_scale([math.nan, 0.0], 1) is None
    assert mean_of_scale([-math.inf, -math.inf], 1) is None


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"lowest": 5, "highest": 5}, "highest"), ({"dimensions": {}}, "dimensions"),
        ({"dimensions": {"why": "?"}}, "dimensions"),
        ({"dimensions": {"a b": "?"}}, "dimensions"), ({"retries": -1}, "retries"),
    ],
)  # fmt: skip
def test_what_is_refused(given_rows: Any, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidField, match=rf"LlmJudge\.{where}"):
        judge(given_rows, **fields)
