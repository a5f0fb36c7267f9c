"""Errors of commands: message, exit code, and a traceback only where it helps."""

import pytest
import typer
from typer.testing import CliRunner

from graftline.pipelines.guarded import Commands, Started
from graftline.stages.errors import InvalidField, StoreFailed, TooManyFailed

ERRORS = {
    "request": InvalidField("is \x1b[2J wrong", where="Train.rank", do="use 8"),
    "run": TooManyFailed("9 of 10 rows failed", where="Jsonl"),
    "world": StoreFailed("the disk is full"),
    "started": Started(InvalidField("too late", where="Train.rows")),
    "mistake": ZeroDivisionError("division by zero"),
    "interrupt": KeyboardInterrupt(),
    "pipe": BrokenPipeError(),
    "exit": typer.Exit(7),
}


@pytest.fixture
def call():
    app = typer.Typer(cls=Commands)

    @app.callback()
    def options() -> None:
        """A command line."""

    @app.command("raise")
    def raise_(kind: str) -> None:
        raise ERRORS[kind]

    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("request", 2, "error: Train.rank: is \\x1b[2J wrong. Use 8"),
        ("run", 1, "error: Jsonl: 9 of 10 rows failed"),
        ("world", 1, "error: the disk is full"),
        ("started", 1, "error: Train.rows: too late"),
        ("interrupt", 130, "interrupted"),
        ("exit", 7, ""),
    ],
)
def test_errors_are_messages_and_exit_codes(call, kind, code, words):
    done = call("raise", kind)
    assert done.exit_code == code and words in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_mistake_shows_its_traceback(call):
    done = call("raise", "mistake")
    assert done.exit_code == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError: division by zero" in done.stderr.splitlines()[-2]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_may_stand_anywhere(call, place):
    arguments = ["raise", "run"]
    arguments.insert(place, "--debug")
    done = call(*arguments)
    assert done.exit_code == 1 and "Traceback" in done.stderr and "error: Jsonl" in done.stderr


def test_a_closed_pipe_is_nobodys_mistake(call):
    assert "Traceback" not in call("raise", "pipe").stderr
