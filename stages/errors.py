"""What can go wrong, as a small hierarchy: every error says what was wrong, where, and what to do.

`RequestError` (exit code 2): the request was wrong and nothing was started.
`RowFault`: one row's own fault; the row becomes `failed` with this reason and the rest goes on.
`WorldError` (exit code 1): the world failed (model server, memory, disk); it stops a stage and never becomes rows.
`RunError` (exit code 1): the run cannot go on for a reason of its own (too many failed rows, an empty result).
"""

from __future__ import annotations

from typing import Any


class GraftlineError(Exception):
    """Base of all: `what` happened, `where` (stage, field, row, file), what to `do`."""

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.do = what, where, do

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        do = f" {self.do[0].upper()}{self.do[1:]}" if self.do else ""
        return f"{where}{self.what}{'.' if do and not self.what.endswith(('.', '!', '?')) else ''}{do}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.do))


def _rebuild(kind: type[GraftlineError], what: str, where: str, do: str) -> GraftlineError:
    return kind(what, where=where, do=do)


class RequestError(GraftlineError):
    """The request was wrong; nothing was started."""


class InvalidField(RequestError):
    """A field of a stage or plug has a value it cannot have; `where` is the field's full path."""


class WrongKind(InvalidField):
    """A stage of one kind was given where another kind is needed."""


class MissingColumn(InvalidField):
    """A stage needs a column its rows do not have, or would add one they already have."""


class UnknownStage(RequestError):
    """A stage, run, plug or method name that does not exist."""


class FileMissing(RequestError):
    """A file the pipeline names is not there, or cannot be opened."""


class ModelNotFound(RequestError):
    """A model name that is no built-in, no directory and no reachable Hub id."""


class EndpointRefused(RequestError):
    """A model's server refuses whatever is asked: a wrong key, an unknown model, something it cannot do. No row's
    fault."""


class CannotPlace(RequestError):
    """The resources asked for do not fit the cluster."""


class StoreRefused(RequestError):
    """The store cannot be used: not there, read-only, or not a store."""


class HeldOutLeak(RequestError):
    """Rows to train on are, or descend from, held-out rows."""


class AdapterMismatch(RequestError):
    """An adapter was put on a base it was not made for."""


class PromptTooLong(RequestError):
    """A prompt is longer than the model's context."""


class PortInUse(RequestError):
    """The port asked for is taken."""


class RowFault(GraftlineError):
    """One row's own fault: the row is failed with this reason, the rest goes on."""


class NoTrainedToken(RowFault):
    """A row in which no token would be trained."""


class WorldError(GraftlineError):
    """The world failed: never a row's fault."""


class EngineFailed(WorldError):
    """A language-model engine died or could not start."""


class StoreFailed(WorldError):
    """Reading or writing the store failed (full disk, lost connection, broken file)."""


class WorkerDied(WorldError):
    """A Ray worker died and its retries are used up."""


class RunError(GraftlineError):
    """The run cannot go on; what was made so far is kept."""


class TooManyFailed(RunError):
    """More rows failed than `max_failed` allows."""


class NothingKept(RunError):
    """A stage kept no row at all."""


class BudgetSpent(RunError):
    """The budget of tokens, money or hours is spent; run again with a larger one to continue."""


class RequirementUnmet(RunError):
    """A service's `requires` does not hold."""
