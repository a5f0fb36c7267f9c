"""Tasks that a model writes: what it is asked, how its lists are read, and what is known of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graftline.stages.generate.children import Children
from graftline.stages.generate.questions import CUT_OFF, Questions, Turns, Unreadable, turns
from graftline.stages.generate.rouge import Pool
from graftline.stages.shapes import RoundsState

FORBIDDEN = ("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw",
             "plot", "go to")  # fmt: skip
"""What a text model cannot do or see."""
WRITE = "Write a list of different tasks, one a line, each in one or two sentences."
KIND = "Is the answer to this task one of a few labels that are known beforehand? Answer Yes or No.\n\nTask: {}"
JUDGED = (
    ("Decide whether the customer is satisfied, annoyed or neither.", "Yes"),
    ("Suggest three names for a bakery that opens at night.", "No"),
    ("Say whether the two sentences mean the same.", "Yes"),
    ("Rewrite the paragraph so that a child understands it.", "No"),
)
FORMS = (
    "{instruction}\n\n{input}",
    "{instruction}\n\nInput: {input}",
    "{instruction}\n{input}",
    "{input}\n\n{instruction}",
)
"""How a task and its input become one text."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task that was accepted; `rows` are the seeds it descends from."""

    key: str
    instruction: str
    rows: tuple[Mapping[str, Any], ...]
    max_rouge: float
    nearest: str | None
    classification: bool = False


@dataclass
class Tasks(RoundsState):
    """Tasks so far, and what is known of them."""

    children: Children = field(kw_only=True)
    questions: Questions = field(kw_only=True)
    seeds: Sequence[Mapping[str, Any]] = ()
    accepted: list[Task] = field(default_factory=list)
    pool: Pool = field(default_factory=Pool)
    due: int = 0
    ids: dict[str, str] = field(default_factory=dict)
    """Key of a task, or id of a seed → id of its (first) row."""


def tasks_in(text: str, cut_off: bool) -> list[str]:
    """The tasks of a list that begins inside its first item; of one that was cut off, not the last.

    Raises:
        Unreadable: there is none.
    """
    found = [one_line(each) for each in re.split(r"\n\s*\d{1,3}[ \t]*[.)](?!\d)", f"\n{text}")]
    found = [each for each in (found[:-1] if cut_off else found) if each]
    if not found:
        raise Unreadable(CUT_OFF if cut_off else "no task is in it")
    return found


def kind_asked(instruction: str) -> Turns:
    """The question whether a task is a classification, after a few that are answered."""
    shots = [
        turn
        for text, answer in JUDGED
        for turn in (*turns(None, KIND.format(text)), {"role": "assistant", "content": answer})
    ]
    return (*shots, *turns(None, KIND.format(instruction)))


def one_line(text: str) -> str:
    """A text on one line, with single spaces."""
    return " ".join(text.split())


def kind_in(text: str) -> bool:
    """Whether a task is said to be a classification.

    Raises:
        Unreadable: neither yes nor no is said.
    """
    if (said := re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)) is None:
        raise Unreadable("it is neither Yes nor No")
    return said[1].lower() == "yes"
