"""A teacher, seeds, and the rounds as a run plays them, without Ray or a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from graftline.stages import expected
from graftline.stages.generate.self_instruct import SelfInstruct
from graftline.stages.lm.engine import Answer, Request
from graftline.stages.rows import FIXED, schema
from graftline.stages.shapes import Made, Source
from graftline.stages.stage import Stage

SEEDS = (
    ("Why was my card charged twice for the same month?", "billing"),
    ("The invoice shows a fee nobody told me about.", "billing"),
    ("Please send last year's receipts for my tax return.", "billing"),
    ("Your refund never reached my bank account.", "billing"),
    ("No signal in the whole street since this morning.", "outage"),
    ("The lamp on the router blinks red after the storm.", "outage"),
    ("Internet is down again, third evening in a row.", "outage"),
)


class Given(Source):
    """Rows, with further columns."""

    has: Mapping[str, str] = {}

    def columns_made(self) -> Mapping[str, str]:
        return {**FIXED, **self.has}


class Teacher(Stage):
    """A model."""

    makes = "model"
    model: str = "somewhere/teacher-1"


class Opened:
    """An artefact that holds rows."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] = FIXED) -> None:
        self.table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema(columns)).sort_by("id")

    def rows(self, columns: list[str]) -> pa.Table:
        return self.table.select(columns)


@dataclass
class Rounds:
    """Plays the rounds of a stage as a run does.

    Args:
        answer: request, round → text, or (text, finish).
        chunk: how many answers `absorb` gets at once (0: all of a round).
    """

    answer: Callable[[Request, int], Any]
    chunk: int = 0
    requests: list[list[Request]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def play(self, stage: Any, rows: Sequence[Mapping[str, Any]]) -> list[Made]:
        (field,) = (name for name, value in stage.__dict__.items() if isinstance(value, Given))
        state = stage.start(None, **{field: Opened(rows, getattr(stage, field).columns)})
        for number in range(1000):
            requests = sorted(stage.propose(state, number), key=lambda request: request.id)
            if not requests:
                break
            self.requests.append(requests)
            pairs = [(request, self._answered(request, number)) for request in requests]
            for start in range(0, len(pairs), self.chunk or len(pairs)):
                stage.absorb(state, number, pairs[start : start + (self.chunk or len(pairs))])
        return list(stage.finish(state))

    def planned(self, stage: Any, rows: Sequence[Mapping[str, Any]]) -> expected.Expected:
        """What a plan expects of the stage, which must be within a factor of two of what it then asks."""
        (field,) = (name for name, value in stage.__dict__.items() if isinstance(value, Given))
        given = expected.Given({getattr(stage, field).key: expected.Volume(len(rows), tuple(rows))})
        self.play(stage, rows)
        found: expected.Expected = stage.expected(given)
        reader, asked = given.reader(stage.asks()), [request for each in self.requests for request in each]
        spent = {
            "requests": len(asked),
            "tokens_in": sum(reader.asked(request.messages, request.prefix) for request in asked),
            "tokens_out": sum(map(reader.text, self.answers)) + len(asked),
        }
        for name, value in spent.items():
            assert value / 2 <= getattr(found.usage, name) <= 2 * value, (name, getattr(found.usage, name), value)
        return found

    def _answered(self, request: Request, number: int) -> Answer:
        given = self.answer(request, number)
        text, finish = given if isinstance(given, tuple) else (given, "stop")
        self.answers.append(text)
        return Answer(request.id, text, finish, 10, len(text.split()))


@pytest.fixture
def play() -> type[Rounds]:
    return Rounds


@pytest.fixture
def given() -> type[Given]:
    return Given


@pytest.fixture
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture
def opened() -> type[Opened]:
    return Opened


@pytest.fixture
def self_instruct() -> Callable[..., SelfInstruct]:
    return lambda **fields: SelfInstruct(**{"seeds": Given(), "teacher": Teacher(), "count": 6, **fields})


@pytest.fixture
def seed_rows() -> Callable[..., list[dict[str, Any]]]:
    """Rows of (text, answer) pairs."""

    def make(pairs: Sequence[tuple[str, str | None]] = SEEDS, system: str | None = None) -> list[dict[str, Any]]:
        rows = []
        for number, (text, answer) in enumerate(pairs):
            turns = [("system", system), ("user", text), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns if content is not None]
            identity = f"seed{number:02}"
            rows.append({"id": identity, "parents": [], "group": f"g{number}", "messages": messages, "answer": answer})
        return rows

    return make
