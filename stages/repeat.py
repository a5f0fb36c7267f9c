"""Loops: a body made again and again, each round from the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PrivateAttr

from graftline.stages.errors import InvalidField, NothingKept, WrongKind
from graftline.stages.evaluate.figure import Figure
from graftline.stages.expected import Expected, Given, Mark, worst
from graftline.stages.rows import Columns
from graftline.stages.specification import Plug, Template
from graftline.stages.stage import Context, Kind, Resources, Stage
from graftline.stages.until import Until
from graftline.stages.value_graph import fill, frontier, replace, walk

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact

MOST_FORESEEN = 100
"""Rounds that `plan` looks at one by one."""


class Previous(Stage):
    """Inside the body of a `Repeat`: what the round before made; in the first round, `start`. It goes where a stage of
    any kind goes; columns are checked when the rounds are put together. In `until`: the round just made."""

    placeholder = True
    makes = "rows"


class Round(Plug):
    """Inside the body of a `Repeat`, in place of a whole number: `plus + times * n` in round n, which counts from 1.

    Args:
        times, plus: factor and summand.
    """

    origin = "a number, not a method"
    placeholder = True

    times: int = 1
    plus: int = 0

    @property
    def stand_in(self) -> int:
        return self.at(1)

    def at(self, number: int) -> int:
        """The number in this round."""
        return self.plus + self.times * number


class Growing(Plug):
    """Inside the body of a `Repeat`, in place of a whole number: `first * factor ** (n - 1)` in round n, which counts
    from 1, to the nearest whole number. `Train(steps=Growing(first=40, factor=1.2))` takes 40, 48, 58 steps.

    Args:
        first: the number in round 1.
        factor: from one round to the next, from 1.
    """

    origin = "a number, not a method"
    placeholder = True

    first: Annotated[int, Field(ge=1)]
    factor: Annotated[float, Field(ge=1)]

    @property
    def stand_in(self) -> int:
        return self.first

    def at(self, number: int) -> int:
        """The number in this round."""
        return round(self.first * self.factor ** (number - 1))


class Repeat(Stage):
    """A loop: each round is the body with `Previous()`, `Round()` and `Growing()` filled in. Rounds are ordinary
    stages: cached, shared, resumed after a kill. The result is the last round's, and of its kind.

    Args:
        body: what is made in each round.
        start: what `Previous()` is in the first round.
        until: ends the loop early (None: all rounds are made).
        at_most: rounds.

    Raises:
        InvalidField: no round would differ from another, or a round's columns are not what the next one needs.

    Property tested: n rounds make the artefact that n nested stages make; a loop run again, or with more rounds, makes
    no round twice.
    """

    method = "repeat"
    origin = "Graftline"
    binds = True

    body: Annotated[Stage, Template]
    start: Stage
    until: Annotated[Until | None, Template] = None
    at_most: Annotated[int, Field(ge=1)]

    _first: Stage | None = PrivateAttr(None)
    _frontier: dict[str, Stage] = PrivateAttr({})

    # --- the value --------------------------------------------------------------------------------------------

    def check(self) -> None:
        for name in ("body", "start"):
            stage = self.__dict__[name]
            if stage.views:
                parts = ", ".join(f".{part}" for part in stage.views)
                raise WrongKind(f"{stage.name} makes several parts", where=f"Repeat.{name}", do=f"name one: {parts}")
        if not self.body.is_open:
            raise InvalidField(
                "is the same in every round", where="Repeat.body", do="put Previous() where the round before belongs"
            )
        self._first = self._round(1, self.start)
        second = self._round(2, self._first) if self.at_most > 1 else self._first
        if self._first.kind == "rows" and dict(self._first.columns) != dict(second.columns):
            raise InvalidField(
                f"its columns change from {', '.join(self._first.columns)} to {', '.join(second.columns)}",
                where="Repeat.body",
                do="leave out what it adds, or add it to `start`",
            )
        # A start that is another value makes another round of everything that `Previous()` or `Round()` reaches.
        elsewhere = replace(self.start, "label", f"{self.start.name} for another round")
        self._frontier = frontier([self._first, self._round(2, elsewhere)], besides=(self.start, elsewhere))

    def _round(self, number: int, before: Stage) -> Stage:
        """The body of one round."""
        found: Stage = fill(self.body, placed(self.body, number, before))
        return replace(found, "label", f"{self.body.name}, round {number}")

    @property
    def stage(self) -> Stage:
        """The first round: what a model at its root is asked of."""
        assert self._first is not None
        return self._first

    @property
    def kind(self) -> Kind:
        return self.stage.kind

    def columns_made(self) -> Columns:
        return self.stage.columns

    # --- making it --------------------------------------------------------------------------------------------

    def footprint(self) -> tuple[Resources, ...]:
        """It waits for its rounds, which the cluster gives room to like any other stage."""
        return (self.resources or Resources(cpus=0.0),)

    def expand(self) -> Mapping[str, Stage]:
        """What no round changes."""
        return {f"frontier_{place}": stage for place, stage in enumerate(self._frontier.values())}

    def foreseen(self) -> Mapping[str, Stage]:
        rounds, before = {}, self.start
        # A loop that may end early is its first round so many times at most, unless later rounds take more.
        alike = self.until and not any(isinstance(node, Growing) for node in walk(self.body))
        for number in range(1, 2 if alike else min(self.at_most, MOST_FORESEEN) + 1):
            before = rounds[f"round {number}"] = self._round(number, before)
        return rounds

    def expected(self, given: Given) -> Expected:
        """All rounds; with `until`, at most."""
        foreseen = list(self.foreseen().values())
        mark: Mark = "<=" if self.until else ""
        rows = given.rows(foreseen[-1])
        last = replaced(rows, mark=worst(rows.mark, "~")) if self.until else rows
        made = last if self.kind == "rows" else None
        return Expected(made, times=self.at_most / len(foreseen), times_mark=mark)

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        last: Artefact | None = None
        before, rounds, why = self.start, [], f"all {self.at_most} rounds were made"
        for number in range(1, self.at_most + 1):
            stage = self._round(number, before)
            try:
                made = context.run(stage)
            except NothingKept as error:
                if last is None or self.until is None or not self.until.nothing_kept:
                    raise
                why = f"round {number} kept nothing: {error}"
                break
            last, before = made, stage
            rounds.append(_told(made))
            context.progress(number, self.at_most)
            if self.until is not None and self.until.reached(made, self._figure(context, number, stage)):
                why = f"{self.until!r} was reached in round {number}"
                break
        assert last is not None
        _keep(last, out)
        return {
            **last.metrics,
            "rounds_made": len(rounds),
            "rounds": rounds,
            "ended": why,
            "_digest": last.digest,
            "_reproducible": last.manifest["reproducible"],
            "_why": last.manifest["why"],
        }

    def _figure(self, context: Context, number: int, stage: Stage) -> Any:
        def read(figure: Figure) -> float:
            asked: Figure = fill(figure, placed(figure, number, stage))
            return asked.read(context.run(asked.report))

        return read


def placed(pattern: Any, number: int, before: Stage) -> dict[str, Any]:
    """Key of a placeholder in a pattern → what stands in its place in a round."""
    found: dict[str, Any] = {}
    for node in walk(pattern):
        if isinstance(node, Previous):
            found[node.key] = before
        elif isinstance(node, (Round, Growing)):
            found[node.key] = node.at(number)
    return found


def _told(made: Artefact) -> dict[str, Any]:
    numbers = {name: value for name, value in made.metrics.items() if isinstance(value, (int, float))}
    rows = {"rows": made.count} if made.kind == "rows" else {}
    return {**numbers, **rows, "seconds": made.manifest["seconds"], "fingerprint": made.fingerprint}


def _keep(made: Artefact, out: Path) -> None:
    """The last round's files as this stage's own."""
    if made.kind == "rows":
        import pyarrow.parquet as pq

        (out / "rows").mkdir()
        pq.write_table(made.rows(), out / "rows" / "part-0.parquet", compression="zstd")
    else:
        made.copy(out)
