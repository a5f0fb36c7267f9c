"""Errors on their way from an author's function to the run: whose fault, and how they cross processes."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace

from graftline.pipelines.store import failed, is_full
from graftline.stages import errors
from graftline.stages.errors import BudgetSpent, EndpointRefused, GraftlineError, RowFault, RunError, WorldError


class ContractBroken(RunError):
    """A stage's author broke the contract of its shape; no row is to blame."""


@dataclass(frozen=True)
class Failure:
    """An error as text: it needs none of the classes that raised it."""

    type: str
    what: str
    where: str = ""
    do: str = ""
    traceback: str = ""

    def error(self) -> GraftlineError:
        kind = ContractBroken if self.type == "ContractBroken" else getattr(errors, self.type, RunError)
        found: GraftlineError = kind(self.what, where=self.where, do=self.do)
        return found

    @classmethod
    def of(cls, error: BaseException, stage: str) -> Failure:
        """The failure of a stage: errors that are not ours are the author's, or the world's."""
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, GraftlineError):
            kind = type(error)
            while kind.__name__ not in vars(errors) and kind is not ContractBroken:
                kind = kind.__bases__[0]
            return cls(kind.__name__, error.what, error.where or stage, error.do, trace)
        if is_full(error):
            full = failed("", stage, error)
            return cls("StoreFailed", full.what, stage, full.do, trace)
        if is_world(error):
            return cls("WorldError", f"{_named(error)}", stage, "run it with more memory or fewer workers", trace)
        return cls("RunError", _named(error), stage, "", trace)

    def told(self, path: str) -> Failure:
        """The same, pointing to the file with its traceback."""
        return replace(self, do=f"{self.do}{'; ' if self.do else ''}the traceback is in {path}")


def is_world(error: BaseException) -> bool:
    """Whether an error of an author's function is the world's (no row's fault): ours of that kind, memory, a full
    disk, a dead worker, a server that refuses everything."""
    if isinstance(error, (WorldError, BudgetSpent, ContractBroken, EndpointRefused, MemoryError)) or is_full(error):
        return True
    kind = type(error)
    return kind.__name__ == "OutOfMemoryError" or kind.__module__.split(".")[0] == "ray"


def reason(error: BaseException) -> str:
    """Why a row failed, in one line."""
    if isinstance(error, RowFault):
        return error.what
    return _named(error)


def _named(error: BaseException) -> str:
    text = str(error).strip().replace("\n", " ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
