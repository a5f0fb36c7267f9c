"""Errors of commands as messages on stderr and exit codes: 0 done, 1 the run failed (what was made is kept), 2 the
request was wrong (nothing was started), 130 interrupted."""

from __future__ import annotations

import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from graftline.stages.errors import GraftlineError, RequestError

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
DEBUG = "--debug"


class Commands(TyperGroup):
    """Turns errors into messages and exit codes, and takes `--debug` at any place."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        context.obj = {"debug": DEBUG in arguments}
        return super().parse_args(context, [each for each in arguments if each != DEBUG])

    def invoke(self, context: Any) -> Any:
        debug = context.obj["debug"]
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            complain("interrupted; run it again to continue")
            raise typer.Exit(INTERRUPTED) from None
        except Started as stopped:
            complain(str(stopped.error), stopped.error if debug else None)
            raise typer.Exit(FAILED) from None
        except GraftlineError as error:
            complain(str(error), error if debug else None)
            raise typer.Exit(REFUSED if isinstance(error, RequestError) else FAILED) from None
        except Exception as error:
            if isinstance(error, (typer.Exit, typer.Abort, BrokenPipeError)) or hasattr(error, "exit_code"):
                raise
            complain(f"{type(error).__name__}: {error}\nThis is a mistake in Graftline, or in your own stage.", error)
            raise typer.Exit(FAILED) from None


class Started(Exception):
    """An error of a run that had started: exit code 1, whatever it is."""

    def __init__(self, error: GraftlineError) -> None:
        super().__init__(str(error))
        self.error = error


def complain(message: str, error: BaseException | None = None) -> None:
    """Writes an error to stderr, with a traceback where one is given."""
    from graftline.pipelines.words import visible

    if error is not None:
        typer.echo(visible("".join(traceback.format_exception(error))), err=True)
    typer.secho(f"error: {visible(message)}", fg="red", err=True)
