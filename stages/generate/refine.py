"""Instructions made clearer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.expected import Expected, Given, unanswered
from graftline.stages.generate.children import Children, prompt_of, question_of
from graftline.stages.generate.questions import Question, Questions, Turns, Unreadable, turns
from graftline.stages.generate.rouge import rouge_l, words
from graftline.stages.generate.tagged import tag, tagged
from graftline.stages.rows import Columns
from graftline.stages.shapes import Made, Rounds, RoundsState
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Model, Rows, Stage

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Request

REFINE = """\
Make this instruction clearer and more specific, with the same intent and, where it has one, the same right answer:

{instruction}

Put the new instruction between <answer> and </answer>, and write nothing else."""


@dataclass
class Refined(RoundsState):
    """What was written so far."""

    children: Children = field(kw_only=True)
    questions: Questions = field(kw_only=True)


class Refine(Rounds):
    """Has a model write each instruction again, clearer and with the same intent (Data Augmentation Models for
    Low-cost Fine-tuning: refinement).

    The new row has no answer: the old one may not fit the new words, so let `TeacherResponses` answer it. It keeps the
    turns before the instruction. Filtered, with the reason, is what is empty or more than `novelty` like its parent
    (ROUGE-L); an answer without `<answer>` tags, or with several, goes back `retries` times, then it has failed.

    Args:
        seeds: rows with an instruction, the last user turn.
        teacher: the model that writes.
        temperature: of the drawing, from 0.
        top_p: above 0, up to 1.
        max_new_tokens: of the new instruction.
        novelty: the largest ROUGE-L F to the parent, 0 to 1.
        retries: how often what cannot be read goes back.
        seed: another seed, other rows.

    Adds `op` (`refine`), and `reference`: the parent's answer, for a verifier that still accepts it.

    The property its tests check: each row becomes one, without an answer, or has a reason.
    """

    method = "generate.augment_family.refine"
    papers = (Paper("Building a Family of Data Augmentation Models for Low-cost LLM Fine-tuning on the Cloud"),)
    adds = {"op": "string", "reference": "string"}

    seeds: Rows
    teacher: Model
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    novelty: Annotated[float, Field(gt=0, le=1)] = 0.9
    retries: Annotated[int, Field(ge=0)] = 1
    seed: int = 0

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"seeds": {"messages": "messages", "answer": "string", "group": "string"}}

    def asks(self) -> Stage:
        return self.teacher

    def start(self, context: Context, **inputs: Any) -> Refined:
        from graftline.stages.lm.engine import Sampling

        state = Refined(children=Children(self.method, self.teacher), questions=Questions(self.seed, self.retries))
        sampling = Sampling(self.temperature, self.top_p, self.max_new_tokens)
        for row in inputs["seeds"].rows(["id", "group", "messages", "answer"]).to_pylist():
            prompt = prompt_of(row["messages"])
            instruction = question_of(prompt).strip()
            if not instruction or prompt[-1]["role"] != "user":
                made = self._row(state, row, prompt, {"round": 0, "seed": None})
                state.made.append(Made(made, "failed", "has no instruction"))
                continue
            state.questions.ask(Question(row["id"], _asked(instruction), sampling, (row, prompt)))
        return state

    def propose(self, state: Refined, round: int) -> Sequence[Request]:
        return state.questions.requests()

    def absorb(self, state: Refined, round: int, answers: Sequence[tuple[Request, Answer]]) -> None:
        for reply in state.questions.replies(round, answers, self._read):
            row, prompt = reply.question.about
            text = reply.value if reply.value is not None else reply.text
            made = self._row(state, row, (*prompt[:-1], {"role": "user", "content": text}), reply.gen)
            if reply.failed:
                state.made.append(Made(made, "failed", reply.failed))
                continue
            reason = ""
            if not words(text):
                reason = "has no word in a-z and 0-9"
            elif rouge_l(words(text), words(prompt[-1]["content"])) > self.novelty:
                reason = f"is more like its parent than ROUGE-L {self.novelty:g}"
            state.made.append(Made(made, "filtered", reason) if reason else Made(made))

    def finish(self, state: Refined) -> Iterable[Made]:
        return state.made

    def expected(self, given: Given) -> Expected:
        """A refined instruction is about as long as the one it comes from."""
        rows, reader = given.rows(self.seeds), given.reader(self.teacher)
        prompt = rows.mean(lambda row: reader.asked(_asked(question_of(row.get("messages")))))
        written = rows.mean(
            lambda row: reader.written(
                self.max_new_tokens, like=reader.text(tag("answer", question_of(row.get("messages"))))
            )
        )
        return Expected(
            rows.like(rows.count, "<=", unanswered), reader.usage(rows.count, prompt, written, rows.mark, self.retries)
        )

    def _read(self, question: Question, text: str, cut_off: bool) -> str:
        found = tagged(text)
        if len(found) > 1:
            raise Unreadable("it has several <answer>, and one is asked for")
        return found[0]

    def _row(
        self, state: Refined, row: Mapping[str, Any], messages: Sequence[Mapping[str, str]], gen: Mapping[str, Any]
    ) -> dict[str, Any]:
        return state.children.row([row], messages, gen, op="refine", reference=row["answer"])


def _asked(instruction: str) -> Turns:
    return turns(None, REFINE.format(instruction=tag("answer", instruction)))
