"""Rationales that a model finds itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.errors import InvalidField, RequestError, WorldError
from graftline.stages.expected import Expected, Given, answered, product, worst
from graftline.stages.generate.children import Children, prompt_of, question_of
from graftline.stages.generate.hints import hinted
from graftline.stages.generate.questions import CUT_OFF, Question, Questions
from graftline.stages.rows import Columns, derived_seed
from graftline.stages.score.check import Check, marked
from graftline.stages.score.number import Number
from graftline.stages.shapes import Made, Rounds, RoundsState
from graftline.stages.specification import Paper, Plug
from graftline.stages.stage import Context, Model, Rows, Stage

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Request
    from graftline.stages.repeat import Repeat
    from graftline.stages.until import Until

FIRST_STEPS, GROWTH = 40, 1.2
"""Steps of a loop's first training, and of each further one per step of the one before (the paper's)."""
INSTRUCTION = "Think step by step. End with a line of #### and the answer alone."


class Shot(Plug):
    """A worked example that `Star` shows.

    Args:
        question: as the rows ask it.
        rationale: the steps, ending in the answer as the check reads it (`#### 12`).
        answer: the answer alone, for the hint.
    """

    origin = "an example in Star's prompt, no method"
    specimen: ClassVar[Mapping[str, str]] = {"rationale": "#### 2", "answer": "2"}

    question: str
    rationale: str
    answer: str


@dataclass
class Rationales(RoundsState):
    """The rationales so far."""

    children: Children = field(kw_only=True)
    questions: Questions = field(kw_only=True)


class Star(Rounds):
    """Has a model explain its way to answers that are known, and keeps what arrives there (STaR's generation step).

    Every question is asked once. Where the answer is wrong, it is asked again with the right one as a hint
    (rationalisation): in parentheses, or at the right one of listed choices. What is kept has neither hint nor
    examples nor instruction in it: the question as it was, and the rationale. Filtered are rationales that end in
    another answer, are cut off, or repeat the hint; a question whose reference the check cannot read has failed.

    Args:
        questions: rows with their reference in `answer`.
        model: the model that explains; of a loop, the last round's.
        by: what counts as right.
        shots: worked examples, shown as turns; with a hint they have one, too.
        instruction: follows each question (None: nothing does).
        rationalise: the share of the failed questions that are asked with a hint (0: rejection sampling).
        temperature: from 0; near greedy, since at a high one wrong steps reach right answers.
        top_p: above 0, up to 1.
        max_new_tokens: of a rationale.
        seed: another seed, other draws.

    Adds `rationalised` and `reference`, the question's right answer; `answer` is the whole rationale, as the last turn.

    The properties its tests check: every kept rationale is right by `by`, no hint is in it, solved questions are not
    asked again, and rows do not depend on batches.
    """

    method = "generate.star"
    papers = (Paper("STaR: Bootstrapping Reasoning With Reasoning"),)
    adds = {"rationalised": "bool", "reference": "string"}

    questions: Rows
    model: Model
    by: Check = Number()
    shots: tuple[Shot, ...] = ()
    instruction: str | None = INSTRUCTION
    rationalise: Annotated[float, Field(ge=0, le=1)] = 1.0
    temperature: Annotated[float, Field(ge=0)] = 0.01
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    seed: int = 0

    def check(self) -> None:
        for place, shot in enumerate(self.shots):
            if self.by.checked(shot.rationale, shot.answer).verified != 1:
                raise InvalidField(
                    "its rationale does not end in its answer", where=f"Star.shots.{place}", do="end it with #### 12"
                )

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"questions": {"messages": "messages", "answer": "string", "group": "string"}}

    def asks(self) -> Stage:
        return self.model

    def start(self, context: Context, **inputs: Any) -> Rationales:
        state = Rationales(children=Children(self.method, self.model), questions=Questions(self.seed))
        for row in inputs["questions"].rows(["id", "group", "messages", "answer"]).to_pylist():
            prompt, reason = prompt_of(row["messages"]), ""
            if not question_of(prompt).strip() or prompt[-1]["role"] != "user":
                reason = "has no question"
            elif not self._right(row["answer"] or "", row["answer"]):
                reason = "its reference cannot be checked"
            if reason:
                made = self._row(state, row, prompt, "", {"round": 0, "seed": None}, False)
                state.made.append(Made(made, "failed", reason))
            else:
                self._ask(state, row, prompt, hint=False)
        return state

    def propose(self, state: Rationales, round: int) -> Sequence[Request]:
        return state.questions.requests()

    def absorb(self, state: Rationales, round: int, answers: Sequence[tuple[Request, Answer]]) -> None:
        for reply in state.questions.replies(round, answers, self._wrong):
            row, prompt, hint = reply.question.about
            if not reply.failed and reply.value and not hint and self._again(row["id"]):
                self._ask(state, row, prompt, hint=True)
                continue
            made = self._row(state, row, prompt, reply.text, reply.gen, bool(hint))
            if reply.failed:
                state.made.append(Made(made, "failed", reply.failed))
            else:
                state.made.append(Made(made, "filtered", reply.value) if reply.value else Made(made))

    def finish(self, state: Rationales) -> Iterable[Made]:
        return state.made

    def expected(self, given: Given) -> Expected:
        """About half of the questions are asked twice; how many rationales are right cannot be known."""
        rows, reader = given.rows(self.questions), given.reader(self.model)
        written = reader.written(self.max_new_tokens)
        requests = product(rows.count, 1 + self.rationalise / 2)
        prompt = rows.mean(lambda row: reader.asked(self._turns(row, prompt_of(row.get("messages")), False)[0]))
        asked = reader.usage(requests, prompt, written, worst(rows.mark, "~"))
        return Expected(rows.like(rows.count, "<=", lambda row: answered(row, written)), asked)

    def _ask(self, state: Rationales, row: Mapping[str, Any], prompt: Sequence[Mapping[str, str]], hint: bool) -> None:
        from graftline.stages.lm.engine import Sampling

        turns, hints = self._turns(row, prompt, hint)
        sampling = Sampling(self.temperature, self.top_p, self.max_new_tokens)
        key = f"{row['id']}/{'hint' if hint else 'alone'}"
        state.questions.ask(Question(key, turns, sampling, (row, prompt, hints)))

    def _turns(
        self, row: Mapping[str, Any], prompt: Sequence[Mapping[str, str]], hint: bool
    ) -> tuple[tuple[Mapping[str, str], ...], str]:
        """What is asked, and the hint that is in it."""
        turns, hints = [turn for turn in prompt if turn["role"] == "system"], ""
        for shot in self.shots:
            said, _ = hinted(shot.question, shot.answer) if hint else (shot.question, "")
            turns += [self._question(said), {"role": "assistant", "content": shot.rationale}]
        said = prompt[-1]["content"] if prompt else ""
        if hint:
            said, hints = hinted(said, marked(row["answer"]) or row["answer"].strip())
        return (*turns, *(turn for turn in prompt[:-1] if turn["role"] != "system"), self._question(said)), hints

    def _question(self, said: str) -> Mapping[str, str]:
        instruction = f"\n\n{self.instruction}" if self.instruction else ""
        return {"role": "user", "content": f"{said}{instruction}"}

    def _wrong(self, question: Question, text: str, cut_off: bool) -> str:
        """Why a rationale is not kept."""
        row, _, hint = question.about
        if cut_off:
            return CUT_OFF
        if not text or not self._right(text, row["answer"]):
            return "its answer is wrong, with a hint too" if hint else "its answer is wrong"
        return "repeats the hint" if hint and hint.casefold() in text.casefold() else ""

    def _right(self, text: str, reference: str | None) -> bool:
        try:
            return self.by.checked(text, reference).verified == 1
        except (RequestError, WorldError):
            raise
        except Exception:  # a check that failed on this text has not found it right
            return False

    def _again(self, row: str) -> bool:
        """Whether a failed question is asked with a hint."""
        return derived_seed(self.seed, f"{row}/rationalise") < self.rationalise * 2**63

    def _row(
        self,
        state: Rationales,
        row: Mapping[str, Any],
        prompt: Sequence[Mapping[str, str]],
        text: str,
        gen: Mapping[str, Any],
        rationalised: bool,
    ) -> dict[str, Any]:
        messages = [*prompt, *([{"role": "assistant", "content": text}] if text else [])]
        return state.children.row([row], messages, gen, rationalised=rationalised, reference=row["answer"])


def star_loop(
    questions: Stage,
    model: Stage,
    tune: Callable[[Stage], Stage],
    at_most: int,
    until: Until | None = None,
    **fields: Any,
) -> Repeat:
    """STaR: in each round the last round's model explains all questions anew, and the *original* one is trained on what
    was kept. A training of which `tune` says neither `steps` nor `epochs` is as long as the paper's: 40 steps in the
    first round, 20 % more in each further one (48, 58, 69, ...). What `tune` says holds: `steps=100` in every round,
    `epochs=2.0`, `steps=Growing(first=60, factor=1.1)`; `steps=None` leaves the length to the training's own default.

    Args:
        questions: rows with their reference in `answer`; the training part.
        model: the original model.
        tune: rows → training on them, from `model`: `lambda rows: train.Train(model=student, rows=rows)`. One that has
            no `steps` is left as it is.
        at_most: rounds.
        until: ends the loop early, such as when a report on dev rows no longer grows.
        fields: further ones of `Star`.

    Raises:
        InvalidField: `tune` trains another model.
    """
    from graftline.stages.repeat import Growing, Previous, Repeat

    body = tune(Star(questions=questions, model=Previous(), **fields))
    if getattr(body, "model", None) != model:
        raise InvalidField(
            "trains another model than the original one",
            where="star_loop.tune",
            do="give its training the same model in every round, or errors add up",
        )
    # By what was written, not by what differs from the defaults: `epochs=3.0` says something, too.
    if "steps" in type(body).model_fields and not body.model_fields_set & {"steps", "epochs"}:
        body = body.replace("steps", Growing(first=FIRST_STEPS, factor=GROWTH))
    return Repeat(body=body, start=model, until=until, at_most=at_most)
