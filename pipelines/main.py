"""The command line. Errors, progress and notes go to stderr; stdout has what was asked for, of `run` the RESULT line.
Exit codes are `guarded`'s."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

# What the commands need is imported inside them: `graftline --help` must not wait for Arrow.
from graftline.pipelines.guarded import DEBUG, Commands
from graftline.pipelines.watching import display, note, watched, write_report
from graftline.stages.errors import InvalidField

if TYPE_CHECKING:
    from graftline.pipelines.budget import Budget
    from graftline.pipelines.load_file import Loaded
    from graftline.pipelines.running import Run

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From a handful of examples to a served adapter, as one pipeline on Ray.",
)

StorePlace = Annotated[
    str | None,
    typer.Option("--store", metavar="URI", help="The store (else GRAFTLINE_STORE, else ./graftline-store)."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help='A Ray cluster (else RAY_ADDRESS, else one of its own; "here": '
                 "this process, without Ray)."),
]  # fmt: skip
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of pipeline(); may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help='A run\'s id, a unique prefix of one, or "latest".')]
StageName = Annotated[str, typer.Argument(metavar="STAGE", help="A fingerprint's prefix, or a class name.")]
File = Annotated[str, typer.Argument(metavar="FILE", help="A pipeline file, or a run's pipeline.json.")]
Port = Annotated[int | None, typer.Option("--port", help="HTTP port of the service (else a free one).")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show tracebacks of errors; may stand anywhere.")] = False,
) -> None:
    """From a handful of examples to a served adapter, as one pipeline on Ray."""


@app.command("plan")
def plan_command(
    file: File, store: StorePlace = None, address: Address = None, set_: Settings = None, as_json: AsJson = False
) -> None:
    """What is in the store, what would run, and roughly how much; needs no Ray."""
    from graftline.pipelines import plan, show

    loaded = load(file, set_)
    planned = plan(loaded.roots, store, base=loaded.base, address=address, name=loaded.name, lock=loaded.lock)
    answer(planned.to_dict(), as_json, lambda: show.plan(planned.to_dict()))


@app.command("run")
def run_command(
    file: File,
    store: StorePlace = None,
    address: Address = None,
    set_: Settings = None,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", metavar="NAME=VALUE", help="Stop after so many tokens, money or hours; repeatable."),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Start the run's service afterwards and stay.")] = False,
    port: Port = None,
) -> None:
    """Makes what is missing. After an interruption, a kill or a failure, run it again: it continues."""
    from graftline.pipelines.store import Store

    loaded = load(file, set_)
    spend = budget_of(budget)
    place = Store.default(store)
    done, figures = watched(loaded, place, address, spend)
    typer.echo(f"RESULT {json.dumps(plain(result(loaded, done) | figures))}")
    if serve:
        sys.stdout.flush()
        serve_until_stopped(done, None, port, address)


@app.command("serve")
def serve_command(
    name: RunName = "latest",
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Which service, if there are several.")] = None,
    store: StorePlace = None,
    address: Address = None,
    port: Port = None,
) -> None:
    """Starts a finished run's service, and stays until Ctrl-C."""
    serve_until_stopped(finished(name, store), stage, port, address)


@app.command("show")
def show_command(
    name: RunName = "latest",
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="One stage in full.")] = None,
    store: StorePlace = None,
    as_json: AsJson = False,
) -> None:
    """A run's stages with their rows, times and figures, or one stage in full."""
    from graftline.pipelines import show

    done = finished(name, store)
    if stage is None:
        answer(done.record, as_json, lambda: show.run(done.record))
    else:
        line = done.line(stage)
        manifest = done.opened(line).manifest if line["path"] else None
        answer({**line, "artefact": manifest}, as_json, lambda: show.stage(line, manifest))


@app.command("inspect")
def inspect_command(
    name: RunName = "latest",
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Whose rows (else the training's).")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows.")] = 5,
    outcome: Annotated[Literal["kept", "filtered", "failed"], typer.Option("--outcome", help="Which rows.")] = "kept",
    mask: Annotated[bool, typer.Option("--mask", help="Any rows as the run's model would be trained on them.")] = False,
    store: StorePlace = None,
) -> None:
    """Prints rows; those of a training stage as the model sees them, with the trained tokens in colour."""
    from rich.console import Console

    from graftline.pipelines import inspect_rows

    found = inspect_rows.choose(finished(name, store), stage, mask)
    taken, total = inspect_rows.taken(found.rows, rows, outcome)
    console = Console()
    for row in taken:
        console.print(inspect_rows.rendered(row, found.tokenizer), soft_wrap=not console.is_terminal)
    note(f"{len(taken)} of {total} {outcome} rows of {found.name}")


@app.command("retry")
def retry_command(name: RunName, stage: StageName, store: StorePlace = None, address: Address = None) -> None:
    """Makes one stage of a run anew, then what depends on it and finds its inputs changed."""
    from graftline.pipelines import retry
    from graftline.pipelines.store import Store

    place = Store.default(store)
    earlier = finished(name, store)
    with display() as watch:
        again = retry(stage, earlier.id, place, address=address, watch=watch)
    write_report(again)
    typer.echo(again.id)


@app.command("gc")
def gc_command(
    store: StorePlace = None,
    keep_runs: Annotated[
        int | None, typer.Option("--keep-runs", min=0, help="Keep only so many of the latest finished runs.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deletes what no run refers to: artefacts, ledgers, scratch folders, broken attempts."""
    from graftline.pipelines import show
    from graftline.pipelines.gc import collect
    from graftline.pipelines.store import Store

    gone = [
        {"name": each.name, "bytes": each.bytes}
        for each in collect(Store.default(store), keep_runs=keep_runs, dry_run=dry_run)
    ]
    answer(gone, as_json, lambda: show.collected(gone, dry_run))


@app.command("ls")
def ls_command(store: StorePlace = None, as_json: AsJson = False) -> None:
    """The store's runs and artefacts."""
    from graftline.pipelines import show
    from graftline.pipelines.store import Store

    place = Store.default(store)
    listing = {"runs": show.records(place), "artefacts": show.artefacts(place)}
    answer(listing, as_json, lambda: show.listing(listing))


@app.command("methods")
def methods_command(
    file: Annotated[str | None, typer.Argument(metavar="[FILE.py]", help="The methods of this file.")] = None,
    as_json: AsJson = False,
    write_stubs: Annotated[bool, typer.Option("--write-stubs", hidden=True)] = False,
) -> None:
    """Every method (stage or plug) with its slot and what it does, or those of your own file."""
    from graftline.pipelines import show
    from graftline.stages import methods

    if write_stubs:
        from graftline.pipelines import stubs

        for path in stubs.write(stubs.files(stubs.ROOT)):
            note(f"wrote {path}")
        return
    lines = [method.to_dict() for method in (methods.table() if file is None else own_methods(file))]
    answer(lines, as_json, lambda: show.methods(lines))


# --- what the commands share ----------------------------------------------------------------------------------


def answer(value: Any, as_json: bool, table: Any) -> None:
    """Prints what was asked for on stdout: as JSON, or as the table that a function makes."""
    if as_json:
        typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 160))  # a file has no edge to wrap at
    console.print(table())


def load(file: str, settings: Sequence[str] | None) -> Loaded:
    """The pipeline of a file."""
    from graftline.pipelines import load_file

    return load_file.load(file, pairs(settings, "--set"))


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """`name=value` texts as a mapping."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InvalidField(f"{text!r} is not name=value", where=option, do=f"write {option} name=value")
        found[name.strip()] = value
    return found


def budget_of(texts: Sequence[str] | None) -> Budget:
    """`--budget tokens=100000` as a budget."""
    from graftline.pipelines import Budget

    kinds = {"tokens": int, "money": float, "hours": float}
    given: dict[str, Any] = {}
    for name, text in pairs(texts, "--budget").items():
        if name not in kinds:
            raise InvalidField(f"there is no budget of {name!r}", where="--budget", do=f"use {', '.join(kinds)}")
        try:
            given[name] = kinds[name](text)
        except ValueError:
            raise InvalidField(f"{text!r} is no number", where=f"--budget {name}", do="give a number") from None
    return Budget(**given)


def result(loaded: Loaded, done: Run) -> dict[str, Any]:
    """The RESULT line: `rows` are those that all stages kept; `adapter_digest` is of the last adapter that
    the pipeline itself has (a sweep's trials are not), or None."""
    lines = [line for line in done.record["stages"] if not line["part"] and line["path"]]
    adapters = [line["digest"] for line in lines if line["kind"] == "adapter" and not line.get("asked_by")]
    return {
        "pipeline": loaded.name,
        "seconds": done.seconds,
        "fetch_seconds": done.fetch_seconds,
        "cached": done.cached,
        "ran": done.ran,
        "rows": sum(line["rows"]["kept"] for line in lines if line["kind"] == "rows"),
        "adapter_digest": adapters[-1] if adapters else None,
    }


def plain(value: Any) -> Any:
    """A value as strict JSON has it: NaN and infinities are null, numbers of NumPy numbers, the rest text."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return plain(value.item()) if callable(getattr(value, "item", None)) else str(value)


def finished(name: str, store: str | None) -> Run:
    """The run a name means."""
    from graftline.pipelines import Run
    from graftline.pipelines.store import Store

    return Run.find(Store.default(store), name)


def own_methods(file: str) -> list[Any]:
    """The methods a user's file defines."""
    from pathlib import Path

    from graftline.pipelines import load_file
    from graftline.stages.errors import FileMissing
    from graftline.stages.methods import describe

    path = Path(file).absolute()
    if not path.is_file():
        raise FileMissing("there is no such file", where=str(path), do="give a Python file with stages or plugs")
    classes = load_file.classes_of(load_file.load_module(path)).values()
    return [describe(kind, path.stem) for kind in classes if kind.__module__ == path.stem]


def serve_until_stopped(done: Run, stage: str | None, port: int | None, address: str | None) -> None:
    """Starts a run's service and waits for Ctrl-C or a termination signal; its URL is a line on stdout."""
    from graftline.pipelines import serving

    config = serving.configuration(done, stage)
    with serving.served(config, port, address) as service:
        note(service.told)
        typer.echo(service.url)
        sys.stdout.flush()
        serving.wait()
        note("stopping")


def main() -> None:
    """Runs the command line."""
    app()
