"""New tasks, with their inputs and outputs, from a model that is shown a few."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.errors import RequestError
from graftline.stages.expected import UNKNOWN, Expected, Given, Volume, answered, product
from graftline.stages.generate.children import Children, question_of
from graftline.stages.generate.instances import (
    INPUT_FIRST,
    LABEL_FIRST,
    Instance,
    broken_instance,
    conflicting,
    instances_in,
)
from graftline.stages.generate.questions import Question, Questions, Reply, turns
from graftline.stages.generate.rouge import words
from graftline.stages.generate.rules import broken_instruction, phrases
from graftline.stages.generate.tasks import (
    FORBIDDEN,
    FORMS,
    WRITE,
    Task,
    Tasks,
    kind_asked,
    kind_in,
    one_line,
    tasks_in,
)
from graftline.stages.rows import Columns
from graftline.stages.shapes import Made, Rounds
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Model, Rows, Stage

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Request, Sampling

LISTED = 8
"""Tasks that a list shows; the model goes on at 9."""
WRITTEN = 8
"""Tasks that a reply is expected to hold."""
EXPECTED, LEAST = 0.5, 0.1
INSTANCES = 2
"""Rows of a task, of which there may be five, before anything is known; input and output are as long as tasks."""


class SelfInstructTasks(Rounds):
    """Has a model write new tasks of any kind and instances of each (Self-Instruct's general branch).

    A list of 8 tasks, 2 of them machine-made where there are any, is shown in the model's own turn, which it continues.
    A task is filtered, with the reason, if it has fewer than 4 or more than 150 words, a forbidden phrase, starts with
    "Write a program", punctuation or a non-ASCII character, or its ROUGE-L F to any seed or accepted task, those of the
    same reply included, is above `novelty`. The model then says whether it is a classification; instances are written
    label first for these, else input first. Instances with no output, one equal to the input, a final colon, or cut
    off go; where one input has two outputs, the whole task goes. What cannot be read goes back `retries` times, then
    the row has failed.

    Args:
        seeds: rows whose last user turn is a task.
        teacher: the model that writes.
        count: tasks wanted, each with up to 5 rows; fewer come out if `rounds` do not suffice.
        system: of the rows made (None: none).
        temperature: of the tasks, from 0; what follows is the likeliest.
        top_p: above 0, up to 1, of the tasks.
        presence: of the tasks, -2 to 2: what it takes off the logit of every token that a reply already has.
        max_new_tokens: of a list of tasks, and of the instances of one.
        novelty: the largest ROUGE-L F to any other task, 0 to 1.
        forbidden: phrases no task may hold, found as whole words, without regard to case.
        retries: how often what cannot be read goes back.
        rounds: how often tasks are asked for at most.
        seed: another seed, other tasks.

    Adds `instruction`, `input`, `classification`, `max_rouge` and `nearest_id` (the nearest seed, or the first row of
    the nearest task). A row's parents are the seeds its task's list showed, also through machine-made ones.

    Raises:
        RequestError: no seed has a task.

    The properties its tests check: no two accepted tasks, nor one and a seed, are more alike than `novelty`; a task
    with conflicting outputs disappears; rows do not depend on how answers were batched.
    """

    version = 2  # tasks are asked for with a presence penalty
    method = "generate.self_instruct.tasks"
    papers = (Paper("Efficacy of Machine-Generated Instructions"),)
    adds = {
        "instruction": "string",
        "input": "string",
        "classification": "bool",
        "max_rouge": "float64",
        "nearest_id": "string",
    }

    seeds: Rows
    teacher: Model
    count: Annotated[int, Field(ge=1)]
    system: str | None = None
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.5
    presence: Annotated[float, Field(ge=-2, le=2)] = 2.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 1024
    novelty: Annotated[float, Field(gt=0, le=1)] = 0.7
    forbidden: tuple[str, ...] = FORBIDDEN
    retries: Annotated[int, Field(ge=0)] = 1
    rounds: Annotated[int, Field(ge=1)] = 8
    seed: int = 0

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"seeds": {"messages": "messages", "group": "string"}}

    def asks(self) -> Stage:
        return self.teacher

    def start(self, context: Context, **inputs: Any) -> Tasks:
        found = [
            {**row, "text": one_line(question_of(row["messages"]))}
            for row in inputs["seeds"].rows(["id", "group", "messages"]).to_pylist()
        ]
        seeds = [row for row in found if row["text"]]
        if not seeds:
            raise RequestError(f"none of the {len(found)} seeds has a task", where=f"{self.name}.seeds")
        questions = Questions(self.seed, self.retries)
        state = Tasks(children=Children(self.method, self.teacher), questions=questions, seeds=seeds)
        for row in seeds:
            state.pool.add(row["id"], words(row["text"]))
            state.ids[row["id"]] = row["id"]
        return state

    def propose(self, state: Tasks, round: int) -> Sequence[Request]:
        missing = self.count - len(state.accepted)
        if round < self.rounds and missing > 0:
            share = (len(state.accepted) + 5 * EXPECTED) / (state.due + 5)
            for number in range(math.ceil(missing / (max(share, LEAST) * WRITTEN))):
                key = f"{round}/{number}"
                texts, rows = self._listed(state, key)
                listed = "".join(f"{place}. {text}\n" for place, text in enumerate(texts, 1))
                sampling = replace(self._sampling(self.temperature, self.top_p), presence=self.presence)
                prefix = f"{listed}{len(texts) + 1}."
                state.questions.ask(Question(key, turns(None, WRITE), sampling, rows, prefix=prefix))
                state.due += WRITTEN
        return state.questions.requests()

    def absorb(self, state: Tasks, round: int, answers: Sequence[tuple[Request, Answer]]) -> None:
        for reply in state.questions.replies(round, answers, self._read):
            about = reply.question.about
            if reply.failed:
                row = self._row(state, about, reply) if isinstance(about, Task) else self._draft(state, "", reply)
                state.made.append(Made(row, "failed", reply.failed))
            elif not isinstance(about, Task):
                for number, text in enumerate(reply.value):
                    self._accept(state, f"{reply.question.key}/{number}", text, reply)
            elif isinstance(reply.value, bool):
                self._ask_instances(state, replace(about, classification=reply.value))
            else:
                self._instances(state, about, reply)

    def finish(self, state: Tasks) -> Iterable[Made]:
        for made in state.made:
            nearest = state.ids.get(made.row["nearest_id"])
            yield Made({**made.row, "nearest_id": nearest}, made.outcome, made.reason)

    def expected(self, given: Given) -> Expected:
        """The lists, then two questions about each task: of which kind it is, and for its instances."""
        rows, reader = given.rows(self.seeds), given.reader(self.teacher)
        texts = [one_line(question_of(row.get("messages"))) for row in rows.sample]
        if not texts:
            return Expected(Volume(product(self.count, INSTANCES), (), "~"), replace(UNKNOWN, requests=self._requests))
        length = sum(map(reader.text, texts)) / len(texts)
        pieces = reader.written(self.max_new_tokens, like=2 * length * INSTANCES)
        kind, form = (reader.asked(each) + length for each in (kind_asked(""), turns(None, INPUT_FIRST)))
        lists, shown = self._requests - 2 * self.count, length * LISTED
        listing = reader.asked(turns(None, WRITE)) + shown
        usage = reader.usage(lists, listing, reader.written(self.max_new_tokens, shown), "~")
        usage += reader.usage(self.count, kind, reader.written(8, like=2), retries=self.retries)
        usage += reader.usage(self.count, form, pieces, retries=self.retries)
        made = rows.like(product(self.count, INSTANCES), "~", lambda row: answered(row, pieces / INSTANCES))
        return Expected(made, usage)

    @property
    def _requests(self) -> int:
        return math.ceil(self.count / (EXPECTED * WRITTEN)) + 2 * self.count

    def _read(self, question: Question, text: str, cut_off: bool) -> Any:
        if not isinstance(question.about, Task):
            return tasks_in(text, cut_off)
        if question.key.endswith("/kind"):
            return kind_in(text)
        return instances_in(text, question.about.classification, cut_off)

    def _accept(self, state: Tasks, key: str, text: str, reply: Reply) -> None:
        """Takes in a task: asks what kind it is, or filters it."""
        max_rouge, nearest = state.pool.nearest(said := words(text))
        reason = broken_instruction(text, phrases(self.forbidden))
        if not reason and not said:
            reason = "has no word in a-z and 0-9"
        if not reason and max_rouge > self.novelty:
            reason = f"is more like another task than ROUGE-L {self.novelty:g}"
        if not reason and len(state.accepted) >= self.count:
            reason = "there are enough"
        if reason:
            row = self._draft(state, text, reply, max_rouge=max_rouge, nearest_id=nearest)
            state.made.append(Made(row, "filtered", reason))
            return
        task = Task(key, text, reply.question.about, max_rouge, nearest)
        state.accepted.append(task)
        state.pool.add(key, said)
        state.questions.ask(Question(f"{key}/kind", kind_asked(text), self._sampling(0.0, 1.0, 8), task))

    def _ask_instances(self, state: Tasks, task: Task) -> None:
        template = LABEL_FIRST if task.classification else INPUT_FIRST
        asked = turns(None, template.format(instruction=task.instruction))
        state.questions.ask(Question(f"{task.key}/instances", asked, self._sampling(0.0, 1.0), task))

    def _instances(self, state: Tasks, task: Task, reply: Reply) -> None:
        found = list(dict.fromkeys(reply.value))
        conflict = "one of its task's inputs has two outputs" if conflicting(found) else ""
        for instance in found:
            row = self._row(state, task, reply, instance)
            reason = conflict or broken_instance(instance)
            state.made.append(Made(row, "filtered", reason) if reason else Made(row))

    def _row(self, state: Tasks, task: Task, reply: Reply, instance: Instance = ("", "")) -> dict[str, Any]:
        given, output = instance
        form = FORMS[int(hashlib.sha256(f"{self.seed}/{task.key}/{given}".encode()).hexdigest(), 16) % len(FORMS)]
        text = form.format(instruction=task.instruction, input=given) if given else task.instruction
        messages = [*turns(self.system, text), *([{"role": "assistant", "content": output}] if output else [])]
        row = state.children.row(
            task.rows,
            messages,
            reply.gen,
            instruction=task.instruction,
            input=given,
            classification=task.classification,
            max_rouge=task.max_rouge,
            nearest_id=task.nearest,
        )
        state.ids.setdefault(task.key, row["id"])
        return row

    def _draft(self, state: Tasks, text: str, reply: Reply, **columns: Any) -> dict[str, Any]:
        """A row of a task that was not accepted."""
        messages = turns(self.system, text)
        named = {**dict.fromkeys(self.adds), "instruction": text, **columns}
        return state.children.row(reply.question.about, messages, reply.gen, **named)

    def _listed(self, state: Tasks, key: str) -> tuple[list[str], tuple[Mapping[str, Any], ...]]:
        """The texts of a list, and the seeds they come from: those whose names hash smallest with its key, machine-made
        ones among them where there are any, in an order that hashes as well."""

        def place(name: str) -> bytes:
            return hashlib.sha256(f"{self.seed}/{key}/{name}".encode()).digest()

        made = sorted(state.accepted, key=lambda task: place(task.key))[: LISTED // 4]
        human = sorted(state.seeds, key=lambda row: place(row["id"]))[: LISTED - len(made)]
        shown = [(place(f"order {task.key}"), task.instruction, task.rows) for task in made]
        shown += [(place(f"order {row['id']}"), row["text"], (row,)) for row in human]
        shown.sort(key=lambda each: each[0])
        rows = {row["id"]: row for _, _, each in shown for row in each}
        return [text for _, text, _ in shown], tuple(rows[name] for name in sorted(rows))

    def _sampling(self, temperature: float, top_p: float, most: int | None = None) -> Sampling:
        from graftline.stages.lm.engine import Sampling

        return Sampling(temperature, top_p, most or self.max_new_tokens)
