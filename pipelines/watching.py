"""A run from the command line: its display while it goes on, its report when it is over."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graftline.pipelines.guarded import Started
from graftline.stages.errors import GraftlineError

if TYPE_CHECKING:
    from rich.console import Console

    from graftline.pipelines.budget import Budget
    from graftline.pipelines.load_file import Loaded
    from graftline.pipelines.running import Run
    from graftline.pipelines.store import Store


@contextlib.contextmanager
def display() -> Iterator[Any]:
    """The display of a run on stderr; what anybody prints meanwhile goes there, too. An error after a stage started
    comes out as `Started`."""
    from graftline.pipelines.progress import Progress

    started = False
    progress = Progress(stderr())

    def watch(event: Any) -> None:
        nonlocal started
        started = started or event.kind == "started"
        progress(event)

    try:
        with contextlib.redirect_stdout(sys.stderr), progress:
            yield watch
    except GraftlineError as error:
        if started:
            raise Started(error) from error
        raise


def watched(loaded: Loaded, store: Store, address: str | None, budget: Budget) -> tuple[Run, dict[str, Any]]:
    """Runs a pipeline with its display, and writes its report; the run and the file's figures."""
    from graftline.pipelines import run

    before = latest_id(store)
    try:
        with display() as watch:
            done = run(
                loaded.roots, store, budget, base=loaded.base, name=loaded.name, address=address, watch=watch,
                parameters=loaded.parameters, file=loaded.file, lock=loaded.lock,
            )  # fmt: skip
    except (Exception, KeyboardInterrupt):
        if (now := latest_id(store)) != before and now is not None:
            from graftline.pipelines import Run

            try:
                write_report(Run.find(store, now))
            except Exception as error:  # what stopped the run matters more than its page
                note(f"report.html could not be written: {error}")
        raise
    figures: dict[str, Any] = {}
    try:
        if loaded.figures is not None:
            with contextlib.redirect_stdout(sys.stderr):
                figures = dict(loaded.figures(done))
    finally:
        write_report(done, figures)
    return done, figures


def latest_id(store: Store) -> str | None:
    """The id of the store's latest run."""
    latest = store.read_json("runs/latest.json")
    return None if latest is None else str(latest["id"])


def write_report(done: Run, figures: Mapping[str, Any] | None = None) -> None:
    """Writes `report.html`, and says where it is."""
    from graftline.pipelines import report

    path = report.write(done, figures)
    note(f"report: {path}")


def stderr() -> Console:
    """Where progress and notes go."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """A line on stderr."""
    stderr().print(text, markup=False, soft_wrap=True)
