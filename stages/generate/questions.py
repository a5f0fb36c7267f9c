"""Questions put to a model, each until its answer can be read: one that cannot goes back, with what is wrong.

What is drawn depends on the stage's seed, the question's key and the attempt alone, so neither batches nor other
questions change an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graftline.stages.lm.engine import Answer, Request, Sampling
from graftline.stages.rows import derived_seed

Turns = tuple[Mapping[str, str], ...]
CUT_OFF = "was cut off at max_new_tokens"
NOT_ASKED = "could not be asked: its prompt is too long, or the chat template refuses it"


class Unreadable(Exception):
    """What is wrong with an answer, as the model is told: "it has no question"."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Args:
        key: a name that no other question of the stage has.
        messages: the conversation.
        sampling: how the answer is drawn; its seed is filled in.
        about: what the stage wants to know again when the answer comes.
        attempt: how often it went back.
        complaint: the turns that go back with it.
        prefix: text with which the answer already starts.
    """

    key: str
    messages: Turns
    sampling: Sampling
    about: Any = None
    attempt: int = 0
    complaint: Turns = ()
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question.

    Args:
        question: the question.
        text: the last answer, without outer space.
        value: what was read in it.
        failed: why nothing was ("" where something was).
        gen: round and seed of the answer.
    """

    question: Question
    text: str
    value: Any = None
    failed: str = ""
    gen: Mapping[str, int] = field(default_factory=dict)


class Questions:
    """The questions of a stage.

    Args:
        seed: the stage's.
        retries: how often a question goes back at most.
    """

    def __init__(self, seed: int, retries: int = 0) -> None:
        self.seed, self.retries = seed, retries
        self._waiting: list[Question] = []
        self._asked: dict[str, Question] = {}

    def ask(self, question: Question) -> None:
        """Ask it in the next round."""
        self._waiting.append(question)

    def requests(self) -> list[Request]:
        """What is waiting, as requests, in the order in which it was asked; nothing is waiting then."""
        found = []
        for number, question in enumerate(self._waiting):
            identity = f"{number:09d}"
            sampling = replace(question.sampling, seed=derived_seed(self.seed, question.key, question.attempt))
            messages = _with(question.messages, question.complaint)
            found.append(Request(identity, messages, sampling, prefix=question.prefix))
            self._asked[identity] = question
        self._waiting = []
        return found

    def replies(
        self,
        round: int,
        answers: Sequence[tuple[Request, Answer]],
        read: Callable[[Question, str, bool], Any],
    ) -> Iterator[Reply]:
        """What came of each answer; of those that go back, nothing yet.

        Args:
            read: question, text, whether the text was cut off → what it says. Raises `Unreadable`.
        """
        for request, given in answers:
            question, text = self._asked.pop(request.id), given.text.strip()
            gen = {"round": round, "seed": request.sampling.seed}
            if given.finish == "cancelled":
                yield Reply(question, text, failed=NOT_ASKED, gen=gen)
                continue
            try:
                value = read(question, text, given.finish == "length")
            except Unreadable as fault:
                if question.attempt >= self.retries:
                    yield Reply(question, text, failed=str(fault), gen=gen)
                else:
                    said = f"That cannot be used: {fault}. Try again, in the form that was asked for."
                    turns = _said("assistant", question.prefix + text) if text else ()
                    self.ask(replace(question, attempt=question.attempt + 1, complaint=(*turns, *_said("user", said))))
                continue
            yield Reply(question, text, value, gen=gen)


def _said(role: str, content: str) -> Turns:
    return ({"role": role, "content": content},)


def _with(messages: Turns, complaint: Turns) -> Turns:
    """The conversation with a complaint at its end; after no answer at all it joins the last user turn, since chat
    templates refuse two user turns in a row."""
    if len(complaint) == 1 and messages and messages[-1]["role"] == "user":
        return (*messages[:-1], *_said("user", f"{messages[-1]['content']}\n\n{complaint[0]['content']}"))
    return (*messages, *complaint)


def turns(system: str | None, user: str) -> Turns:
    """A system message, where there is one, and a user turn."""
    return (*(_said("system", system) if system is not None else ()), *_said("user", user))
