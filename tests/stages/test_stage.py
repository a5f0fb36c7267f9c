"""Stages: what is refused at construction, kinds, and columns."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages.errors import InvalidField, MissingColumn, WrongKind
from graftline.stages.rows import FIXED
from graftline.stages.stage import Resources, View

from .conftest import Both, Brain, Fit, Length, Lines, Parts, Pick, chain


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Lines(n="3"), InvalidField, r"Lines\.n: .*integer.*'3'"),
        (lambda: Lines(share=float("nan")), InvalidField, r"Lines\.share: .*finite"),
        (lambda: Lines(share=float("inf")), InvalidField, r"Lines\.share: .*finite"),
        (lambda: Lines(nn=3), InvalidField, r"Lines\.nn: .*not permitted.*fields are.*share"),
        (lambda: Lines(tags=("a", 3)), InvalidField, r"Lines\.tags\.1: .*string"),
        (lambda: Lines(max_failed=1.5), InvalidField, r"Lines\.max_failed: .*less than or equal to 1"),
        (lambda: Length(), InvalidField, r"Length\.rows: .*required"),
        (lambda: Length(rows=Brain()), WrongKind, r"Length\.rows: takes rows, but Brain makes model"),
        (lambda: Length(rows="x.jsonl"), WrongKind, r"Length\.rows: takes a stage that makes rows"),
        (lambda: Both(named={"a": Brain()}), WrongKind, r"Both\.named\.a: takes rows"),
        (
            lambda: Fit(model=Brain(), rows=Lines(), knob={}),
            WrongKind,
            r"Fit\.knob: takes a value of type Knob, not \{\}",
        ),
        (
            lambda: Fit(model=Brain(), rows=Lines(), knob={"rank": 2}),
            WrongKind,
            r"Fit\.knob: takes a value of type Knob",
        ),
        (lambda: Lines(resources={"cpus": 1.0}), WrongKind, r"Lines\.resources: takes a value of type Resources"),
        (lambda: Fit(model=Lines(), rows=Lines()), WrongKind, r"Fit\.model: takes model, but Lines makes rows"),
        (lambda: Length(rows=Parts(rows=Lines())), WrongKind, r"say which: \.left, \.right"),
        (lambda: View(of=Parts(rows=Lines()), part="up"), InvalidField, r"View\.part: Parts has no part 'up'"),
        (lambda: Pick(rows=Lines()), MissingColumn, r"Pick\.rows: needs the column 'length'"),
        (lambda: Pick(rows=Lines(), by="source"), MissingColumn, r"'source' as number, Lines has it as string"),
        (lambda: Length(rows=Length(rows=Lines())), MissingColumn, r"would add the column 'length'"),
        (lambda: Resources(threads=0), InvalidField, r"Resources\.threads: 0 is too small"),
    ],
)
def test_refused_at_construction(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_an_adapter_is_a_model_too() -> None:
    tuned = Fit(model=Brain(), rows=Lines())
    assert Fit(model=tuned, rows=Lines()).model == tuned


def test_columns_flow_through_the_graph() -> None:
    assert Lines().columns == FIXED
    assert chain().columns == {**FIXED, "length": "int64"}
    assert View(of=Parts(rows=Length(rows=Lines())), part="left").columns == {**FIXED, "length": "int64"}
