"""A few stages and a plug, for the tests of what all of them share."""

from __future__ import annotations

from typing import Annotated, Any

from graftline.stages.shapes import Scorer, Selector, Source, Verdict
from graftline.stages.specification import Added, Execution, Plug, Template
from graftline.stages.stage import Model, Rows, Stage, View
from graftline.stages.value_graph import fingerprints


class Raw:
    """Pins that name what they are asked for."""

    def file(self, path: str) -> str:
        return f"content of {path}"

    def pinned(self, name: str, find: Any) -> str:
        return str(find())


class Lines(Source):
    n: int = 1
    share: float = 0.5
    tags: tuple[str, ...] = ()
    port: Annotated[int, Execution] = 80
    later: Annotated[int, Added] = 7


class Length(Scorer):
    adds = {"length": "int64"}


class Pick(Selector):
    by: str = "length"

    def columns_needed(self) -> dict[str, dict[str, str]]:
        return {"rows": {self.by: "number"}}


class Parts(Selector):
    views = ("left", "right")

    def select_rows(self, table: Any, context: Any) -> list[Verdict]:
        return [Verdict(row, part="left") for row in table["id"].to_pylist()]


class Knob(Plug):
    rank: int = 4
    start: Rows | None = None


class Brain(Stage):
    makes = "model"
    size: int = 1


class Fit(Stage):
    makes = "adapter"
    model: Model
    rows: Rows
    knob: Knob = Knob()


class Both(Source):
    rows: tuple[Rows, ...] = ()
    named: dict[str, Rows] = {}


class Varied(Stage):
    """Holds a pattern, and a mapping whose keys have a stage in them."""

    makes = "adapter"
    inside: Annotated[Stage, Template]
    over: Annotated[dict[str | tuple[Stage, str], int], Template] = {}
    rows: Rows | None = None


class Gap(Stage):
    """A placeholder for a stage."""

    makes = "rows"
    placeholder = True


class Count(Plug):
    """A placeholder for a number."""

    placeholder = True
    stand_in = 1
    times: int = 1


KINDS = (Lines, Length, Pick, Parts, Knob, Brain, Fit, Both, View, Varied, Gap, Count)
CLASSES = {kind.qualified: kind for kind in KINDS}


def fingerprint(stage: Stage) -> str:
    return fingerprints([stage], Raw())[stage.key]


def chain(**fields: Any) -> Pick:
    return Pick(rows=Length(rows=Lines(**fields)))
