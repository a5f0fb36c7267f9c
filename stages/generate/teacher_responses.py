"""Answers from a teacher to prompts that stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.expected import SAMPLE, Expected, Given, Volume, answered, product, spread
from graftline.stages.generate.children import Children, prompt_of, question_of
from graftline.stages.generate.questions import CUT_OFF, Question, Questions
from graftline.stages.generate.refusals import REFUSALS, refuses
from graftline.stages.rows import FIXED, Columns
from graftline.stages.shapes import Made, Rounds, RoundsState
from graftline.stages.specification import Added, Paper
from graftline.stages.stage import Context, Model, Rows, Stage

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Request


@dataclass
class Responses(RoundsState):
    """The answers so far."""

    children: Children = field(kw_only=True)
    questions: Questions = field(kw_only=True)
    said: dict[str, set[str]] = field(default_factory=dict)
    """Prompt's id → its answers."""


class TeacherResponses(Rounds):
    """Has a teacher answer each prompt anew (Instruction Tuning with GPT-4); the prompt's text is not touched.

    The new row's parent is the prompt's row; it has its group, and beside the fixed columns those that `keep` names
    alone: scores of another answer say nothing about this one. Filtered, with the reason, are answers that are empty,
    cut off, refusals (one of `refusals` in the first 160 characters) or the same as another candidate for the prompt; a
    prompt that cannot be asked has failed. The paper's sampling is not known; one pass at temperature 1 is a choice.

    The paper's cross-lingual copy, where a cheap model translates the instructions and the teacher answers them in the
    language they are now in: `TeacherResponses(prompts=Translate(prompts=rows, translator=cheap, into="German"),
    teacher=strong, keep=("language",))`.

    Args:
        prompts: rows; what they say up to a final assistant turn is asked.
        teacher: the model that answers.
        n: candidates for each prompt, each a row of its own.
        temperature: of the drawing, from 0; above 0 for more than one candidate.
        top_p: above 0, up to 1.
        max_new_tokens: of an answer.
        refusals: phrases, found as whole words, without regard to case.
        seed: another seed, other answers.
        keep: columns of the prompts that their answers have, too.

    Adds `reference`, the answer the prompt's row had (missing where it had none).

    The properties its tests check: prompts stay byte-equal, each candidate is a row or has a reason, and an answer
    depends on its prompt alone, not on the others or on batches.
    """

    method = "generate.teacher_responses"
    papers = (Paper("Instruction Tuning with GPT-4"),)
    adds = {"reference": "string"}

    prompts: Rows
    teacher: Model
    n: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    refusals: tuple[str, ...] = REFUSALS
    seed: int = 0
    keep: Annotated[tuple[str, ...], Added] = ()

    def check(self) -> None:
        if self.n > 1 and self.temperature == 0:
            raise InvalidField(
                f"{self.n} candidates at temperature 0 are all the same",
                where="TeacherResponses.n",
                do="use n=1, or a temperature above 0",
            )
        for position, column in enumerate(self.keep):
            if column in {**FIXED, **self.adds} or column in self.keep[:position]:
                where = f"TeacherResponses.keep.{position}"
                raise InvalidField(f"{column!r} is taken", where=where, do="leave it out")

    def columns_needed(self) -> Mapping[str, Columns]:
        kept = dict.fromkeys(self.keep, "any")
        return {"prompts": {"messages": "messages", "answer": "string", "group": "string", **kept}}

    def columns_made(self) -> Columns:
        there = self.prompts.columns
        return {**FIXED, **self.adds, **{column: there.get(column, "string") for column in self.keep}}

    def asks(self) -> Stage:
        return self.teacher

    def start(self, context: Context, **inputs: Any) -> Responses:
        from graftline.stages.lm.engine import Sampling

        state = Responses(children=Children(self.method, self.teacher), questions=Questions(self.seed))
        sampling = Sampling(self.temperature, self.top_p, self.max_new_tokens)
        for row in inputs["prompts"].rows(["id", "group", "messages", "answer", *self.keep]).to_pylist():
            prompt = prompt_of(row["messages"])
            if not question_of(prompt).strip():
                empty = self._row(state, row, prompt, {"round": 0, "seed": None})
                state.made.append(Made(empty, "failed", "has no prompt"))
                continue
            for number in range(self.n):
                state.questions.ask(Question(f"{row['id']}/{number}", prompt, sampling, row))
        return state

    def propose(self, state: Responses, round: int) -> Sequence[Request]:
        return state.questions.requests()

    def absorb(self, state: Responses, round: int, answers: Sequence[tuple[Request, Answer]]) -> None:
        def read(question: Question, text: str, cut_off: bool) -> str:
            """Why the answer is not kept."""
            if cut_off:
                return CUT_OFF
            if not text:
                return "is empty"
            if refuses(text, self.refusals):
                return "is a refusal"
            return ""

        for reply in state.questions.replies(round, answers, read):
            row, prompt = reply.question.about, reply.question.messages
            messages = (*prompt, {"role": "assistant", "content": reply.text})
            made = self._row(state, row, messages, reply.gen)
            if reply.failed:
                state.made.append(Made(made, "failed", reply.failed))
                continue
            said = state.said.setdefault(row["id"], set())
            reason = reply.value or ("is the same as another candidate" if reply.text in said else "")
            if not reason:
                said.add(reply.text)
            state.made.append(Made(made, "filtered", reason) if reason else Made(made))

    def finish(self, state: Responses) -> Iterable[Made]:
        return state.made

    def expected(self, given: Given) -> Expected:
        rows, reader = given.rows(self.prompts), given.reader(self.teacher)
        requests, written = product(self.n, rows.count), reader.written(self.max_new_tokens)
        prompt = rows.mean(lambda row: reader.asked(prompt_of(row.get("messages"))))
        some = spread(rows.sample, max(1, SAMPLE // self.n))
        made = tuple(answered(row, written) for row in some for _ in range(self.n))
        return Expected(Volume(requests, made, "<="), reader.usage(requests, prompt, written, rows.mark))

    def _row(
        self, state: Responses, row: Mapping[str, Any], messages: Sequence[Mapping[str, str]], gen: Mapping[str, Any]
    ) -> dict[str, Any]:
        kept = {column: row[column] for column in self.keep}
        return state.children.row([row], messages, gen, reference=row["answer"], **kept)
