"""More instructions of the kind of a few."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.errors import InvalidField, RequestError
from graftline.stages.expected import Expected, Given, answer_of, average, unanswered
from graftline.stages.generate.children import Children, question_of
from graftline.stages.generate.expansion import EXPAND, PAIR, Expansion, apportioned
from graftline.stages.generate.questions import Question, Questions, Reply, turns
from graftline.stages.generate.rouge import Pool, words
from graftline.stages.generate.tagged import pairs, tag, tagged
from graftline.stages.rows import Columns
from graftline.stages.shapes import Made, Rounds
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Model, Rows, Stage

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Request

EXPECTED, LEAST = 0.8, 0.25
"""Share of outputs that is kept, before anything is known; and the least that is reckoned with."""


class Expand(Rounds):
    """Has a model write new instructions of the kind of a few, or instructions with responses (Data Augmentation
    Models for Low-cost Fine-tuning: expansion and pair expansion).

    Each prompt shows a few seeds of one category and asks for several outputs between `<answer>` tags; what stands
    outside is dropped, and an answer without any goes back `retries` times, then it has failed. Categories are
    balanced to `shares`. Filtered, with the reason, are outputs that are empty, repeat an example, are more than
    `novelty` like any seed or kept output (ROUGE-L of the instruction, exactly), or are more than their category needs.
    An expanded row has no answer yet: let `TeacherResponses` write it.

    Args:
        seeds: rows with an instruction (the last user turn), for pairs with an answer, too.
        teacher: the model that writes.
        count: rows wanted; fewer come out if `rounds` do not suffice.
        pairs: write responses, too.
        by: a text column, the seeds' category (None: all are of one).
        shares: category → its share of `count`; those left out get none (empty: all the same).
        examples: seeds shown in a prompt.
        outputs: asked for in a prompt.
        temperature: of the drawing, from 0.
        top_p: above 0, up to 1.
        max_new_tokens: of all outputs of a prompt together.
        novelty: the largest ROUGE-L F to any other instruction, 0 to 1.
        retries: how often what cannot be read goes back.
        rounds: how often is asked for what is missing.
        seed: another seed, other rows.

    Adds `op` (`expand` or `pair`), `category`, `max_rouge` and `nearest_id`. A row's parents are the seeds shown.

    Raises:
        RequestError: no seed can be shown, or a share is for a category without seeds.

    The properties its tests check: categories hit their numbers, nothing untagged is kept, no two kept instructions
    nor one and a seed are more alike than `novelty`, and rows do not depend on how answers were batched.
    """

    method = "generate.augment_family"
    papers = (Paper("Building a Family of Data Augmentation Models for Low-cost LLM Fine-tuning on the Cloud"),)
    adds = {"op": "string", "category": "string", "max_rouge": "float64", "nearest_id": "string"}
    specimen: ClassVar[Mapping[str, Any]] = {"by": "answer"}

    seeds: Rows
    teacher: Model
    count: Annotated[int, Field(ge=1)]
    pairs: bool = False
    by: str | None = None
    shares: Mapping[str, Annotated[float, Field(ge=0)]] = {}
    examples: Annotated[int, Field(ge=1)] = 2
    outputs: Annotated[int, Field(ge=1)] = 5
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    novelty: Annotated[float, Field(gt=0, le=1)] = 0.7
    retries: Annotated[int, Field(ge=0)] = 1
    rounds: Annotated[int, Field(ge=1)] = 8
    seed: int = 0

    def check(self) -> None:
        if self.shares and (self.by is None or not sum(self.shares.values()) > 0):
            raise InvalidField(
                "shares are of the categories that `by` names, and one is above 0", where="Expand.shares", do="give by="
            )

    def columns_needed(self) -> Mapping[str, Columns]:
        by = {} if self.by is None else {self.by: "string"}
        return {"seeds": {"messages": "messages", "answer": "string", "group": "string", **by}}

    def asks(self) -> Stage:
        return self.teacher

    def start(self, context: Context, **inputs: Any) -> Expansion:
        seeds: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
        pool = Pool()
        columns = ["id", "group", "messages", "answer", *([self.by] if self.by else [])]
        for row in inputs["seeds"].rows(list(dict.fromkeys(columns))).to_pylist():
            text = question_of(row["messages"]).strip()
            pool.add(row["id"], words(text))
            category = row[self.by] if self.by else ""
            if text and category is not None and (row["answer"] or not self.pairs):
                seeds[category].append({**row, "text": text})
        shares = self.shares or dict.fromkeys(seeds, 1.0)
        if none := sorted(category for category, share in shares.items() if share and category not in seeds):
            raise RequestError(
                f"no seed can be shown for the category {none[0]!r}",
                where=f"{self.name}.shares",
                do=f"use {', '.join(sorted(seeds)) or 'seeds with instructions'}",
            )
        if not seeds:
            raise RequestError(
                f"no seed has an instruction{' and an answer' if self.pairs else ''}", where=f"{self.name}.seeds"
            )
        questions, children = Questions(self.seed, self.retries), Children(self.method, self.teacher)
        return Expansion(
            children=children, questions=questions, seeds=seeds, wanted=apportioned(self.count, shares), pool=pool
        )

    def propose(self, state: Expansion, round: int) -> Sequence[Request]:
        from graftline.stages.lm.engine import Sampling

        sampling = Sampling(self.temperature, self.top_p, self.max_new_tokens)
        for category in sorted(state.wanted) if round < self.rounds else ():
            missing = state.wanted[category] - state.kept[category]
            share = (state.good[category] + 5 * EXPECTED) / (state.due[category] + 5)
            for number in range(math.ceil(missing / (max(share, LEAST) * self.outputs))):
                key = f"{round}/{number}/{category}"
                shown = self._shown(state.seeds[category], key)
                state.due[category] += self.outputs
                state.questions.ask(Question(key, turns(None, self._asked(shown)), sampling, (category, shown)))
        return state.questions.requests()

    def absorb(self, state: Expansion, round: int, answers: Sequence[tuple[Request, Answer]]) -> None:
        def read(question: Question, text: str, cut_off: bool) -> list[tuple[str, str]]:
            return (pairs(text) if self.pairs else [(each, "") for each in tagged(text)])[: self.outputs]

        for reply in state.questions.replies(round, answers, read):
            if reply.failed:
                state.made.append(Made(self._row(state, reply, reply.text, ""), "failed", reply.failed))
            for instruction, response in reply.value or ():
                self._take(state, reply, instruction, response)

    def finish(self, state: Expansion) -> Iterable[Made]:
        return state.made

    def expected(self, given: Given) -> Expected:
        """Outputs are about as long as the seeds that are shown."""
        rows, reader = given.rows(self.seeds), given.reader(self.teacher)
        seeds = [{"text": question_of(row.get("messages")), "answer": answer_of(row)} for row in rows.sample]
        prompts = [
            reader.asked(turns(None, self._asked(seeds[start : start + self.examples])))
            for start in range(0, len(seeds), self.examples)
        ]
        like = average([reader.text(f"{self._example(seed)}\n") for seed in seeds])
        requests = math.ceil(self.count / EXPECTED / self.outputs)
        written = reader.written(self.max_new_tokens, like=None if like is None else like * self.outputs)
        asked = reader.usage(requests, average(prompts), written, "~", self.retries)
        bare = rows if self.pairs else replace(rows, sample=tuple(map(unanswered, rows.sample)))
        return Expected(bare.like(self.count, "~"), asked)

    def _take(self, state: Expansion, reply: Reply, instruction: str, response: str) -> None:
        category, shown = reply.question.about
        row = self._row(state, reply, instruction, response)
        row["max_rouge"], row["nearest_id"] = state.pool.nearest(said := words(instruction))
        reason = ""
        if not instruction or (self.pairs and not response):
            reason = "is empty"
        elif any(_key(seed["text"]) in _key(instruction) for seed in shown):
            reason = "repeats an example"
        elif not said:
            reason = "has no word in a-z and 0-9"
        elif row["max_rouge"] > self.novelty:
            reason = f"is more like another instruction than ROUGE-L {self.novelty:g}"
        else:
            state.good[category] += 1
            if state.kept[category] >= state.wanted[category]:
                reason = "there are enough of its category"
            else:
                state.kept[category] += 1
                state.pool.add(row["id"], said)
        state.made.append(Made(row, "filtered", reason) if reason else Made(row))

    def _row(self, state: Expansion, reply: Reply, instruction: str, response: str) -> dict[str, Any]:
        category, shown = reply.question.about
        first = (shown[0]["messages"] or [{"role": "user", "content": ""}])[0]
        messages = list(turns(first["content"] if first["role"] == "system" else None, instruction))
        if response:
            messages.append({"role": "assistant", "content": response})
        return state.children.row(
            shown,
            messages,
            reply.gen,
            op="pair" if self.pairs else "expand",
            category=category if self.by else None,
            max_rouge=None,
            nearest_id=None,
        )

    def _shown(self, seeds: Sequence[Mapping[str, Any]], key: str) -> tuple[Mapping[str, Any], ...]:
        """The examples of a prompt: those whose ids hash smallest with its key."""

        def place(seed: Mapping[str, Any]) -> bytes:
            return hashlib.sha256(f"{self.seed}/{key}/{seed['id']}".encode()).digest()

        return tuple(sorted(seeds, key=place)[: self.examples])

    def _asked(self, shown: Sequence[Mapping[str, Any]]) -> str:
        template = PAIR if self.pairs else EXPAND
        return template.format(examples="\n\n".join(map(self._example, shown)), outputs=self.outputs)

    def _example(self, seed: Mapping[str, Any]) -> str:
        if not self.pairs:
            return tag("answer", seed["text"])
        said = (tag("instruction", seed["text"]), tag("response", seed["answer"]))
        return tag("answer", "\n{}\n{}\n".format(*said))


def _key(text: str) -> str:
    return " ".join(text.casefold().split())
