"""The shapes of row stages: an author writes one function on Arrow tables and never touches Ray.

`Source` makes rows, `Mapper` changes them, `Scorer` adds columns, `Selector` decides which stay (a barrier), `Rounds`
asks a model in rounds. Authors neither see nor return dead rows: an exception in a batch is bisected to the guilty
row, which is failed with the reason; `pipelines/` keeps the account (carried + created = kept + filtered + failed).
Mappers, scorers and selectors keep ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from graftline.stages.expected import UNKNOWN, Expected, Given, Usage, Volume
from graftline.stages.specification import Execution
from graftline.stages.stage import Context, Rows, Stage

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.lm.engine import Answer, Request

Outcome = Literal["kept", "filtered", "failed"]


@dataclass(frozen=True, slots=True)
class Made:
    """One row a source or rounds stage made: its columns, what becomes of it, and why."""

    row: Mapping[str, Any]
    outcome: Outcome = "kept"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A selector's word on one row. In a stage with views, `part` names the part a kept row belongs to."""

    id: str
    outcome: Literal["kept", "filtered"] = "kept"
    reason: str = ""
    part: str = ""


class RowStage(Stage):
    """A stage that makes rows.

    Args:
        max_failed: share of rows that may fail before the stage is refused (0 to 1).
    """

    makes = "rows"
    max_failed: Annotated[float, Field(ge=0, le=1), Execution] = 0.1


class Source(RowStage):
    """Makes rows from files, or from several inputs."""

    def make_rows(self, context: Context, **inputs: Any) -> Iterator[Made]:
        """Every row, with its outcome. Rows with an id of an input count as carried, others as created. A missing or
        empty id is filled in from the row's parents and content, equal rows numbered in their order."""
        raise NotImplementedError(f"{type(self).__name__}.make_rows")

    def expected(self, given: Given) -> Expected:
        from graftline.stages.value_graph import inputs

        rows = [each for each in inputs(self) if each.kind == "rows"]
        return Expected(given.rows(*rows) if rows else Volume())


class Mapper(RowStage):
    """Changes rows, a batch at a time.

    Args:
        batch_size: rows a call gets at most.
    """

    rows: Rows
    batch_size: Annotated[int, Field(ge=1), Execution] = 256
    calls_model: ClassVar[bool] = False
    """Whether it calls a language model: its rows are then kept in the ledger as they are made, and never paid for
    twice."""

    def map_rows(self, table: pa.Table, context: Context) -> pa.Table:
        """The batch, changed: the same ids, all declared columns. A row it leaves out is filtered; a string column
        `filtered` says why (null = kept). `context.engine` is opened once a worker."""
        raise NotImplementedError(f"{type(self).__name__}.map_rows")

    def expected(self, given: Given) -> Expected:
        rows = given.rows(self.rows)
        asked = replace(UNKNOWN, requests=rows.count, mark=rows.mark) if self.calls_model else Usage()
        return Expected(rows, asked)


class Scorer(RowStage):
    """Adds columns to rows, a batch at a time; never drops one.

    Args:
        batch_size: rows a call gets at most.
    """

    rows: Rows
    batch_size: Annotated[int, Field(ge=1), Execution] = 256
    calls_model: ClassVar[bool] = False

    def score_rows(self, table: pa.Table, context: Context) -> Mapping[str, Sequence[Any]]:
        """Added column → one value a row, in the batch's order; None = missing."""
        raise NotImplementedError(f"{type(self).__name__}.score_rows")

    def expected(self, given: Given) -> Expected:
        rows = given.rows(self.rows)
        asked = replace(UNKNOWN, requests=rows.count, mark=rows.mark) if self.calls_model else Usage()
        return Expected(rows, asked)


class Selector(RowStage):
    """Decides which rows stay; sees all of them at once."""

    rows: Rows

    def select_rows(self, table: pa.Table, context: Context) -> Iterable[Verdict]:
        """One verdict for each row of the table (sorted by id); ties are the author's to break, by id."""
        raise NotImplementedError(f"{type(self).__name__}.select_rows")

    def expected(self, given: Given) -> Expected:
        rows = given.rows(self.rows)
        return Expected(replace(rows, mark="<="))


@dataclass
class RoundsState:
    """What a rounds stage knows so far; a stage subclasses it."""

    made: list[Made] = field(default_factory=list)


class Rounds(RowStage):
    """Asks a model in rounds: proposes prompts, absorbs the answers, until it proposes none.

    A killed stage replays its rounds from the ledger, so `propose` and `absorb` must depend on the state alone.

    Args:
        concurrency: engines (Ray actors) that answer side by side.
    """

    concurrency: Annotated[int, Field(ge=1), Execution] = 1

    def asks(self) -> Stage:
        """The model stage whose engine answers."""
        raise NotImplementedError(f"{type(self).__name__}.asks")

    def start(self, context: Context, **inputs: Any) -> Any:
        """The state before the first round."""
        raise NotImplementedError(f"{type(self).__name__}.start")

    def propose(self, state: Any, round: int) -> Sequence[Request]:
        """The prompts of a round, with ids unique in it; none when finished."""
        raise NotImplementedError(f"{type(self).__name__}.propose")

    def absorb(self, state: Any, round: int, answers: Sequence[tuple[Request, Answer]]) -> None:
        """Take in a round's answers, sorted by request id."""
        raise NotImplementedError(f"{type(self).__name__}.absorb")

    def finish(self, state: Any) -> Iterable[Made]:
        """All rows, with their outcomes."""
        raise NotImplementedError(f"{type(self).__name__}.finish")

    def expected(self, given: Given) -> Expected:
        return Expected(Volume(), UNKNOWN)
