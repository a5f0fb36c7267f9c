"""A language model's opinion of each row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.expected import Expected, Given, Row, Usage, product, turns_of
from graftline.stages.lm.reference import refuse_endpoint
from graftline.stages.rows import Columns, digest
from graftline.stages.score.asking import asked, said
from graftline.stages.score.judging import conversation, first_object, quoted, refuse_own_work, words
from graftline.stages.shapes import Scorer
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Model

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.lm.engine import Engine, Request

DIMENSIONS = {
    "helpfulness": "does it do what was asked?",
    "relevance": "does all of it belong to what was asked?",
    "accuracy": "is what it says true?",
    "detail": "does it go into as much detail as is useful?",
}
SYSTEM = "You judge answers strictly and fairly. Length is no merit."
JSON_RULE = (
    "Give each a whole number from {lowest} (worst) to {highest} (best). Reply with one JSON object and nothing else:"
    " {shape}"
)
NUMBER_RULE = "Reply with one whole number from {lowest} (worst) to {highest} (best) and nothing else."
WHY = 25
"""Tokens of a sentence."""
CORRECTION = "That cannot be read: {fault}. Reply again, with the JSON object alone."


class LlmJudge(Scorer):
    """Adds a judge's scores of each row's last answer: `judge_<dimension>` each, `judge` their mean, `judge_why`,
    and `judge_by`, which model judged by which rubric.

    The judge decodes greedily. What it says is held to a schema; what does not fit is sent back to it with the fault, a
    bounded number of times; then the scores are missing, never a number, and `judge_why` says what was wrong. Scores
    of two judges, or of two rubrics, are not to be compared. What is judged stands between marks it cannot forge.

    Args:
        judge: the model that judges; not the one that wrote the rows.
        dimensions: name (of a column) → what the judge is asked.
        lowest, highest: the scale, whole numbers.
        reference: a column with a good answer to compare with (None: none is shown).
        read: `json` has the judge write numbers and a reason; `expected` asks for each dimension apart and takes the
            mean of the scale under the judge's own probabilities, which even a small model can give (not through a
            server, which tells no probabilities).
        retries: how often what cannot be read is asked again.
        max_new_tokens: of what the judge writes.
        allow_own: whether the judge may have written the rows.

    The properties its tests check: nonsense is missing and not a number, after exactly `retries` more requests; each
    row's scores are the same in any batch; a row cannot forge the marks around it.
    """

    method = "score.llm_judge"
    papers = (
        Paper("Efficient Finetuning Large Language Models For Vietnamese Chatbot"),
        Paper("HoneyBee: Progressive Instruction Finetuning of Large Language Models for Materials Science"),
        Paper("OpenBezoar: Small, Cost-Effective and Open Models Trained on Mixes of Instruction Data"),
    )
    needs = {"messages": "messages"}
    calls_model = True

    judge: Model
    dimensions: Annotated[Mapping[str, str], Field(min_length=1)] = DIMENSIONS
    lowest: int = 1
    highest: int = 10
    reference: str | None = None
    read: Literal["json", "expected"] = "json"
    retries: Annotated[int, Field(ge=0)] = 2
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    allow_own: bool = False

    def check(self) -> None:
        if self.lowest >= self.highest:
            raise InvalidField("leaves no scale", where="LlmJudge.highest", do="use more than lowest")
        for name, question in self.dimensions.items():
            if not name.isidentifier() or name in ("why", "by") or not question.strip():
                raise InvalidField(
                    f"{name!r} is no dimension", where="LlmJudge.dimensions", do="name it by a word, and ask a question"
                )
        if self.read == "expected":
            refuse_endpoint(self.judge, where="LlmJudge.judge", why="it tells no probabilities; use read='json'")
        if not self.allow_own:
            refuse_own_work(self.judge, self.rows, "LlmJudge.judge")

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"rows": self.needs if self.reference is None else {**self.needs, self.reference: "string"}}

    def columns_added(self) -> Columns:
        scores = {f"judge_{name}": "float64" for name in self.dimensions}
        return {"judge": "float64", **scores, "judge_why": "string", "judge_by": "string"}

    def expected(self, given: Given) -> Expected:
        """An answer names each dimension and says why in a sentence."""
        rows, reader = given.rows(self.rows), given.reader(self.judge)

        def shown(row: Row) -> str:
            reference = None if self.reference is None else str(row.get(self.reference) or "")
            return self._shown(turns_of(row) or ({"role": "assistant", "content": ""},), reference)

        if self.read == "expected":
            scale = [{"role": "assistant", "content": str(value)} for value in self._scale]
            more = sum(reader.whole([each]) for each in scale)
            scored = rows.total(
                lambda row: sum(
                    reader.whole(self._question(shown(row), question), ask=True) + more
                    for question in self.dimensions.values()
                )
            )
            requests = product(rows.count, len(self.dimensions))
            return Expected(rows, Usage(requests, tokens_scored=scored, mark=rows.mark))
        said = self._request("", "").messages[-1]["content"]
        written = reader.written(self.max_new_tokens, like=reader.text(said[said.rindex("{") :]) + WHY)
        prompt = rows.mean(lambda row: reader.asked(self._request("", shown(row)).messages))
        return Expected(rows, reader.usage(rows.count, prompt, written, rows.mark, self.retries))

    @property
    def rubric(self) -> str:
        """16 hex digits over everything the judge is told beside the row."""
        told = [dict(self.dimensions), self.lowest, self.highest, self.read, self.reference is not None]
        return digest([*told, SYSTEM, JSON_RULE, NUMBER_RULE])[:16]

    def score_rows(self, table: pa.Table, context: Context) -> Mapping[str, Sequence[Any]]:
        rows = [said(turns) for turns in table["messages"].to_pylist()]
        references = [None] * len(rows) if self.reference is None else table[self.reference].to_pylist()
        asks = [index for index, row in enumerate(rows) if row and row[-1]["role"] == "assistant"]
        shown = {index: self._shown(rows[index], references[index]) for index in asks}
        with context.engine(self.judge) as engine:
            by = f"{engine.model}@{self.rubric}"
            found = self._written(engine, table, shown) if self.read == "json" else self._expected(engine, shown)
        scores = [found.get(index, ({}, "has no answer to judge")) for index in range(len(rows))]
        return {
            "judge": [math.fsum(each.values()) / len(each) if each else None for each, _ in scores],
            **{f"judge_{name}": [each.get(name) for each, _ in scores] for name in self.dimensions},
            "judge_why": [why or None for _, why in scores],
            "judge_by": [by] * len(rows),
        }

    def _shown(self, row: Sequence[Mapping[str, str]], reference: str | None) -> str:
        texts = {"conversation": conversation(row[:-1]), "answer": row[-1]["content"]}
        return quoted(**texts, **({} if reference is None else {"reference": reference}))

    def _written(self, engine: Engine, table: pa.Table, shown: Mapping[int, str]) -> dict[int, tuple[Any, str]]:
        ids = table["id"].to_pylist()
        requests = [self._request(str(ids[index]), text) for index, text in shown.items()]
        said = words(engine, requests, self.parsed, self.retries, CORRECTION)
        return {
            index: word.value if word.value is not None else ({}, f"no score: {word.fault}")
            for index, word in zip(shown, said, strict=True)
        }

    def _request(self, id: str, text: str) -> Request:
        from graftline.stages.lm.engine import Request, Sampling

        shape = "{" + ", ".join(f'"{name}": …' for name in self.dimensions) + ', "why": "one sentence"}'
        rule = JSON_RULE.format(lowest=self.lowest, highest=self.highest, shape=shape)
        questions = "\n".join(f"- {name}: {question}" for name, question in self.dimensions.items())
        user = f"{text}\n\nJudge the answer by:\n{questions}\n\n{rule}"
        turns = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": user})
        return Request(id, turns, Sampling(max_new_tokens=self.max_new_tokens))

    def parsed(self, text: str) -> tuple[dict[str, float], str]:
        """Scores and reason in what a judge wrote.

        Raises:
            ValueError: it does not fit.
        """
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match

        value = first_object(text)
        number = {"type": "number", "minimum": self.lowest, "maximum": self.highest}
        schema = {
            "properties": {**dict.fromkeys(self.dimensions, number), "why": {"type": "string"}},
            "required": list(self.dimensions),
        }
        if fault := best_match(Draft202012Validator(schema).iter_errors(value)):
            raise ValueError(f"{fault.json_path}: {fault.message[:200]}")
        scores = {name: float(value[name]) for name in self.dimensions}
        if not all(map(math.isfinite, scores.values())):
            raise ValueError("a score is not a number")
        return scores, str(value.get("why", ""))

    def _expected(self, engine: Engine, shown: Mapping[int, str]) -> dict[int, tuple[Any, str]]:
        scale = self._scale
        prompts = [self._question(text, question) for text in shown.values() for question in self.dimensions.values()]
        found = asked(lambda some: engine.choice_logprobs(some, [scale] * len(some)), prompts)
        values = [None if each is None else mean_of_scale(each, self.lowest) for each in found]
        scores: dict[int, tuple[Any, str]] = {}
        for place, index in enumerate(shown):
            mine = values[place * len(self.dimensions) : (place + 1) * len(self.dimensions)]
            whole = None not in mine
            scores[index] = (
                (dict(zip(self.dimensions, mine, strict=True)), "")
                if whole
                else ({}, "no score: the judge cannot be asked")
            )
        return scores

    @property
    def _scale(self) -> list[str]:
        return [str(value) for value in range(self.lowest, self.highest + 1)]

    def _question(self, text: str, question: str) -> list[dict[str, str]]:
        """What is asked about one dimension where the scale is read from probabilities."""
        rule = NUMBER_RULE.format(lowest=self.lowest, highest=self.highest)
        return [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{text}\n\nJudge the answer: {question}\n\n{rule}"},
        ]


def mean_of_scale(logprobs: Sequence[float], lowest: int) -> float | None:
    """Σ k · p(k) over the scale, with the probabilities made to sum to one; None where they are no numbers."""
    top = max(logprobs)
    if not math.isfinite(top) or any(map(math.isnan, logprobs)):
        return None
    shares = [math.exp(value - top) for value in logprobs]
    return math.fsum(share * (lowest + place) for place, share in enumerate(shares)) / math.fsum(shares)
