"""New labelled texts from a model that is shown a few."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.errors import RequestError
from graftline.stages.expected import Expected, Given, answer_of, average
from graftline.stages.generate.children import model_name
from graftline.stages.generate.drafts import Drafts, Seed
from graftline.stages.generate.rouge import words
from graftline.stages.generate.rules import broken_rule, phrases
from graftline.stages.read.template import check_template, fill
from graftline.stages.rows import Columns, derived_seed
from graftline.stages.shapes import Made, Rounds
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Model, Rows, Stage

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Request

ASSISTANT = (
    "as an ai", "language model", "unable to assist", "cannot assist", "can't assist", "happy to help",
    "happy to assist", "here to help", "how can i assist", "how may i assist", "sorry to hear",
    "sorry for the inconvenience", "sorry for your loss",
)  # fmt: skip
"""Phrases of an assistant that answers where it should write what people say."""
EXPECTED = 0.8
"""Share of drafts that is kept, before anything is known."""
LEAST = 0.25
"""At most four drafts are asked for in a round for each that is missing."""


class SelfInstruct(Rounds):
    """Has a model write more rows of a labelled set, label first (Self-Instruct's branch for classification).

    For each draft the model sees a few seeds of one label as a numbered list, `1. label: text`, in its own turn, and
    continues it; labels are balanced. A draft is filtered, with the reason, if it was cut off, breaks a rule (empty,
    fewer than 4 or more than 150 words, starts with punctuation, ends with a colon, repeats its answer, the request
    or an example, has a forbidden phrase), has the text of another with another answer (both go), or its ROUGE-L F to
    any seed or kept draft is above `novelty`. The paper's list of forbidden words (image, file, draw, …) is for
    instructions that a text model cannot follow; inputs may well speak of files, so here it is the assistant's
    phrases. Drafts are of one line; the numbers of examples, words and tokens fit short texts.

    Args:
        seeds: rows with an answer; the training part, never the held-out rows.
        teacher: the model that writes.
        count: rows wanted; fewer come out if `rounds` do not suffice.
        examples: seeds shown to the teacher, all of the draft's label.
        instruction: what the teacher is asked; may name `{answer}`.
        system: the teacher's system message (None: the chat template's own).
        temperature: of the drawing, from 0.
        top_p: above 0, up to 1.
        max_new_tokens: of a draft.
        novelty: the largest ROUGE-L F to any other text, 0 to 1.
        forbidden: phrases no draft may hold, found as whole words, without regard to case.
        rounds: how often the teacher is asked at most; after the first round only for what is missing.
        seed: another seed, other drafts.

    Adds `max_rouge` (0 to 1, to the nearest of the seeds and of the drafts kept before it) and `nearest_id`. A row's
    parents are the seeds it was shown, its group joins theirs.

    Raises:
        RequestError: no seed has a text and an answer.

    The properties its tests check: no two kept texts, nor one and a seed, are more alike than `novelty`; texts with
    two answers disappear; the rows depend on the candidates in their order, not on how they were batched.
    """

    method = "generate.self_instruct"
    papers = (
        Paper("Efficacy of Machine-Generated Instructions"),
        Paper("OpenBezoar: Small, Cost-Effective and Open Models Trained on Mixes of Instruction Data"),
        Paper("BioInstruct: Instruction Tuning of Large Language Models for Biomedical Natural Language Processing"),
        Paper("LLM2LLM: Boosting LLMs with Novel Iterative Data Enhancement"),
    )
    adds = {"max_rouge": "float64", "nearest_id": "string"}

    seeds: Rows
    teacher: Model
    count: Annotated[int, Field(ge=1)]
    examples: Annotated[int, Field(ge=1)] = 3
    instruction: str = "Write messages about: {answer}"
    system: str | None = None
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: Annotated[int, Field(ge=1)] = 60
    novelty: Annotated[float, Field(gt=0, le=1)] = 0.7
    forbidden: tuple[str, ...] = ASSISTANT
    rounds: Annotated[int, Field(ge=1)] = 8
    seed: int = 0

    def check(self) -> None:
        check_template(self.instruction, "SelfInstruct.instruction", known=("answer",))

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"seeds": {"messages": "messages", "answer": "string", "group": "string"}}

    def asks(self) -> Stage:
        return self.teacher

    def start(self, context: Context, **inputs: Any) -> Drafts:
        found = [_seed(row) for row in inputs["seeds"].rows(["id", "group", "messages", "answer"]).to_pylist()]
        seeds: dict[str, list[Seed]] = defaultdict(list)
        for seed in found:
            if seed.text.strip() and seed.answer.strip():
                seeds[seed.answer].append(seed)
        if not seeds:
            raise RequestError(
                f"none of the {len(found)} seeds has a text and an answer",
                where=f"{self.name}.seeds",
                do="give labelled rows: read.Jsonl(path=…, prompt=…, answer=…)",
            )
        each, more = divmod(self.count, len(seeds))
        wanted = {answer: each + (position < more) for position, answer in enumerate(sorted(seeds))}
        state = Drafts(model=model_name(self.teacher), seeds=seeds, wanted=wanted, novelty=self.novelty)
        for seed in found:
            state.pool.add(seed.id, words(seed.text))
        return state

    def propose(self, state: Drafts, round: int) -> Sequence[Request]:
        from graftline.stages.lm.engine import Request, Sampling

        requests: list[Request] = []
        if round >= self.rounds:
            return requests
        for answer in sorted(state.wanted):
            missing = state.wanted[answer] - state.kept[answer]
            share = (state.good[answer] + 5 * EXPECTED) / (state.taken[answer] + 5)
            for _ in range(math.ceil(missing / max(share, LEAST))):
                slot = f"{round}/{len(requests)}"
                shown = self._shown(state.seeds[answer], slot)
                sampling = Sampling(
                    self.temperature, self.top_p, self.max_new_tokens, ("\n",), derived_seed(self.seed, slot)
                )
                identity = f"{round:03d}-{len(requests):06d}"
                state.asked[identity] = answer, shown
                requests.append(Request(identity, self._messages(answer), sampling, prefix=numbered(answer, shown)))
        return requests

    def absorb(self, state: Drafts, round: int, answers: Sequence[tuple[Request, Answer]]) -> None:
        forbidden = phrases(self.forbidden)
        for request, given in answers:
            answer, shown = state.asked.pop(request.id)
            text = _line(given.text)
            broken = given.fault or {"length": "was cut off at max_new_tokens", "cancelled": "was cancelled"}.get(
                given.finish, ""
            )
            if not broken:
                asked = fill(self.instruction, {"answer": answer})
                broken = broken_rule(text, answer, asked, [_line(seed.text) for seed in shown], forbidden)
            state.take(text, answer, shown, {"round": round, "seed": request.sampling.seed}, broken)

    def finish(self, state: Drafts) -> Iterable[Made]:
        return state.outcomes()

    def expected(self, given: Given) -> Expected:
        """Drafts are about as long as the seeds that the teacher sees."""
        rows, reader = given.rows(self.seeds), given.reader(self.teacher)
        seeds: dict[str, list[Seed]] = defaultdict(list)
        lengths = []
        for row in rows.sample:
            seed = _seed({"id": "", "group": "", "answer": answer_of(row), **row})
            seeds[seed.answer].append(seed)
            lengths.append(reader.written(self.max_new_tokens, like=reader.text(seed.text)))
        prompts = [
            reader.asked(self._messages(answer), numbered(answer, some[start : start + self.examples]))
            for answer, some in seeds.items()
            for start in range(0, max(1, len(some) - self.examples + 1), self.examples)
        ]
        asked = reader.usage(math.ceil(self.count / EXPECTED * 1.1), average(prompts), average(lengths), "~")
        return Expected(rows.like(self.count, "~", reader.rewritten), asked)

    def _shown(self, seeds: Sequence[Seed], slot: str) -> tuple[Seed, ...]:
        """The examples of a slot: those whose ids hash smallest with it."""
        return tuple(sorted(seeds, key=lambda seed: hashlib.sha256(f"{self.seed}/{slot}/{seed.id}".encode()).digest()))[
            : self.examples
        ]

    def _messages(self, answer: str) -> tuple[Mapping[str, str], ...]:
        user = {"role": "user", "content": fill(self.instruction, {"answer": answer})}
        return (user,) if self.system is None else ({"role": "system", "content": self.system}, user)


def numbered(answer: str, shown: Sequence[Seed]) -> str:
    """The list the teacher continues."""
    lines = [f"{number}. {_line(answer)}: {_line(seed.text)}\n" for number, seed in enumerate(shown, 1)]
    return f"{''.join(lines)}{len(shown) + 1}. {_line(answer)}:"


def _line(text: str) -> str:
    return " ".join(text.split())


def _seed(row: Mapping[str, Any]) -> Seed:
    messages = row["messages"] or []
    text = next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "") or ""
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    return Seed(row["id"], row["group"], text, row["answer"] or "", system)
