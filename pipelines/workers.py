"""Where stages run: Ray's workers, or this very process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from graftline.pipelines.board import Board, LocalBoard
from graftline.pipelines.chains import Chain, Shard, Summary, close_chain
from graftline.pipelines.failures import Failure
from graftline.pipelines.perform import perform
from graftline.pipelines.placing import Needs, Node, this_machine
from graftline.pipelines.work import Work
from graftline.stages.artefact import Artefact

Result = tuple[Artefact | None, Failure | None]
HERE = "here"
"""The address that means: in this process."""


class Workers(Protocol):
    """A place for stages to run."""

    @property
    def board(self) -> Board:
        """Where workers tell and ask."""

    @property
    def on_ray(self) -> bool:
        """Whether stages may start actors."""

    def nodes(self) -> list[Node]:
        """What there is."""

    def perform(self, work: Work, needs: Needs) -> Result:
        """Makes a stage; waits for it."""

    def shards(self, work: Work, needs: Needs, attempt: str, shards: Sequence[Shard]) -> Iterator[Summary]:
        """Runs the shards of a chain, in whatever order they finish."""

    def close_chain(self, work: Work, attempt: str, total: Summary, began: float) -> Result:
        """Commits a chain."""

    def cancel(self) -> None:
        """Stops what is running."""

    def close(self) -> None:
        """Gives back what it took."""


class Here:
    """Runs everything in the run's own process and threads: for tests, and for a debugger.

    Args:
        board: the run's board.
    """

    on_ray = False

    def __init__(self, board: LocalBoard) -> None:
        self.board = board

    def nodes(self) -> list[Node]:
        return [this_machine()]

    def perform(self, work: Work, needs: Needs) -> Result:
        return perform(work)

    def shards(self, work: Work, needs: Needs, attempt: str, shards: Sequence[Shard]) -> Iterator[Summary]:
        chain = Chain(work, attempt)
        try:
            yield from map(chain, shards)
        finally:
            chain.close()

    def close_chain(self, work: Work, attempt: str, total: Summary, began: float) -> Result:
        return close_chain(work, attempt, total, began)

    def cancel(self) -> None:
        """There is nothing to stop: its stages run in the threads of the process."""

    def close(self) -> None:
        """There is nothing to give back."""
