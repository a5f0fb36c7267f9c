"""A language model's choice between two answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.expected import Expected, Given, product
from graftline.stages.score.asking import said
from graftline.stages.score.judging import conversation, quoted, refuse_own_work, words
from graftline.stages.shapes import Scorer
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Model

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.lm.engine import Request

MOST = 16
"""Tokens of a verdict: a word and the end of the turn, for a judge that does not talk."""
NONE = {"id": "", "prompt": (), "chosen": "", "rejected": ""}
SYSTEM = "You compare answers strictly and fairly. Neither length nor order is a merit."
RULE = "Which answer is better: {question} Reply with A, B or tie, and nothing else."
CORRECTION = "That cannot be read: {fault}. Reply with A, B or tie alone."


class PairJudge(Scorer):
    """Adds `preferred`: 1 where a judge prefers a preference row's chosen answer, 0 where it prefers the rejected one,
    0.5 where it has no preference; and `preferred_why`.

    Each pair is shown in both orders, and only a verdict that names the same answer in both counts; else it is a tie,
    so that a judge's liking for the first place does no harm. Where a verdict cannot be read, after asking again, it
    is missing, never a number.

    Args:
        judge: the model that judges; not the one that wrote the rows.
        question: what "better" means.
        retries: how often what cannot be read is asked again.
        allow_own: whether the judge may have written the rows.

    The property its test checks: with chosen and rejected swapped, 1 and 0 change places and a tie stays one.
    """

    method = "score.llm_judge.pair"
    papers = (Paper("Efficient Finetuning Large Language Models For Vietnamese Chatbot"),)
    needs = {"prompt": "messages", "chosen": "string", "rejected": "string"}
    adds = {"preferred": "float64", "preferred_why": "string"}
    calls_model = True

    judge: Model
    question: str = "which does what was asked, truthfully and without anything needless?"
    retries: Annotated[int, Field(ge=0)] = 2
    allow_own: bool = False

    def check(self) -> None:
        if not self.allow_own:
            refuse_own_work(self.judge, self.rows, "PairJudge.judge")

    def expected(self, given: Given) -> Expected:
        rows, reader = given.rows(self.rows), given.reader(self.judge)
        prompt = rows.mean(lambda row: reader.asked(self._request({**NONE, **row}, False).messages))
        return Expected(
            rows,
            reader.usage(product(rows.count, 2), prompt, reader.written(MOST, like=MOST / 4), rows.mark, self.retries),
        )

    def score_rows(self, table: pa.Table, context: Context) -> Mapping[str, Sequence[Any]]:
        rows = table.select(["id", "prompt", "chosen", "rejected"]).to_pylist()
        requests = [self._request(row, swapped) for row in rows for swapped in (False, True)]
        with context.engine(self.judge) as engine:
            found = words(engine, requests, verdict, self.retries, CORRECTION)
        preferred: list[float | None] = []
        why: list[str | None] = []
        for one, other in zip(found[::2], found[1::2], strict=True):
            if one.value is None or other.value is None:
                preferred.append(None)
                why.append(f"no verdict: {one.fault or other.fault}")
            elif one.value == -other.value:
                preferred.append((one.value + 1) / 2)
                why.append(None)
            else:
                preferred.append(0.5)
                why.append("the order decided")
        return {"preferred": preferred, "preferred_why": why}

    def _request(self, row: Mapping[str, Any], swapped: bool) -> Request:
        from graftline.stages.lm.engine import Request, Sampling

        answers = [row["chosen"] or "", row["rejected"] or ""]
        one, other = reversed(answers) if swapped else answers
        text = quoted(conversation=conversation(said(row["prompt"])), A=one, B=other)
        user = f"{text}\n\n{RULE.format(question=self.question)}"
        turns = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": user})
        return Request(f"{row['id']}/{int(swapped)}", turns, Sampling(max_new_tokens=MOST))


def verdict(text: str) -> int:
    """1 for A, −1 for B, 0 for a tie.

    Raises:
        ValueError: it is none of these.
    """
    word = re.sub(r"^answer\s+|[\W_]+", " ", text.strip(), flags=re.IGNORECASE).strip().lower()
    found = {"a": 1, "b": -1, "tie": 0}.get(word)
    if found is None:
        raise ValueError("it is neither A, B nor tie")
    return found
