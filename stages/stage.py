"""A stage: one step of a pipeline, which is a value.

A `Stage` is a frozen pydantic model whose inputs are other stages, held in its fields at any depth; nesting them is
the graph. What it makes, its kind, is checked where it is used. Nothing here imports Ray, torch or Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import GetCoreSchemaHandler, PrivateAttr
from pydantic_core import PydanticCustomError, core_schema

from graftline.stages.errors import InvalidField, MissingColumn, WrongKind
from graftline.stages.expected import Expected, Given, Volume
from graftline.stages.rows import FIXED, NUMBERS, Columns
from graftline.stages.specification import Execution, Plug, Specification, short

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact
    from graftline.stages.lm.engine import Engine

Kind = Literal["rows", "model", "adapter", "embedder", "report", "service"]


class Resources(Plug):
    """What one task or worker of a stage asks of the cluster.

    Args:
        cpus: logical CPUs (None: the stage's own default).
        gpus: GPUs.
        memory: bytes of memory.
        threads: torch and OpenMP threads (None: as many as `cpus`, at least 1).
    """

    cpus: float | None = None
    gpus: float = 0.0
    memory: int | None = None
    threads: int | None = None

    def check(self) -> None:
        for name, least in (("cpus", 0), ("gpus", 0), ("memory", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidField(f"{value} is too small", where=f"Resources.{name}", do=f"use at least {least}")


class Stage(Specification):
    """One step of a pipeline. What it makes is its kind; how, is `make` or one of the row shapes (`shapes.py`).

    Args:
        label: a name shown in reports and errors (None: the class's name).
        resources: what it asks of the cluster (None: the stage's default).
    """

    makes: ClassVar[Kind]
    needs: ClassVar[Columns] = {}
    """Columns (name → type) the field `rows` must have."""
    adds: ClassVar[Columns] = {}
    """Columns a rows stage adds."""
    views: ClassVar[tuple[str, ...]] = ()
    """Names of the parts of a stage whose outputs must not diverge (`split.train`, `split.test`)."""
    on_driver_node: ClassVar[bool] = False
    """Whether it must run where the driver does (it reads local files or fetches a model)."""
    whole_node: ClassVar[bool] = False
    """Whether it takes all CPUs of a node unless `resources` says otherwise (training, engines)."""

    label: Annotated[str | None, Execution] = None
    resources: Annotated[Resources | None, Execution] = None

    _columns: dict[str, str] | None = PrivateAttr(None)

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        for field, needed in self.columns_needed().items():
            for path, stage in _stages_of(self.__dict__[field], f"{type(self).__name__}.{field}"):
                if stage.kind == "rows" and not stage.is_open:
                    _check_columns(path, stage, needed)
        if self.kind == "rows":
            self._columns = dict(self.columns_made())

    @property
    def kind(self) -> Kind:
        """What it makes: rows, model, adapter, embedder, report or service."""
        return self.makes

    @property
    def name(self) -> str:
        """How people see it: the label, else the class's name."""
        return self.label or type(self).__name__

    def in_short(self) -> str:
        return f"<{self.name} {self.key[:6]}>"

    @property
    def columns(self) -> Columns:
        """Column → type of the rows a rows stage makes."""
        if self._columns is None:
            raise WrongKind(f"{type(self).__name__} makes a {self.kind}, which has no columns")
        return self._columns

    def columns_needed(self) -> Mapping[str, Columns]:
        """Field → columns it must have; a type may also be `number` or `any`."""
        return {"rows": self.needs} if self.needs and "rows" in type(self).model_fields else {}

    def columns_added(self) -> Columns:
        """Columns a rows stage adds to its input's."""
        return self.adds

    def columns_made(self) -> Columns:
        """Columns of the rows it makes: its input's and the added ones, or the fixed ones where it has no input."""
        source = self.__dict__.get("rows")
        base: Columns = source.columns if isinstance(source, Stage) else FIXED
        added = self.columns_added()
        if twice := sorted(set(base) & set(added)):
            raise MissingColumn(
                f"would add the column {twice[0]!r}, which its rows already have",
                where=type(self).__name__,
                do="rename it or drop the earlier stage",
            )
        return {**base, **added}

    def footprint(self) -> tuple[Resources, ...]:
        """What it holds at once: first the task it runs in, then the workers it starts itself. `cpus=None` is one
        CPU, or a whole node where the class says `whole_node`."""
        return (self.resources or Resources(),)

    def preflight(self, file: Callable[[str], str]) -> None:
        """What `plan` can check of the outside before anything starts, for a stage that will run: that a file is
        readable, a port free. `file` makes a path absolute. Raises a `RequestError`."""

    def expected(self, given: Given) -> Expected:
        """For `plan`: the rows it makes, and what it has models read and write, to a factor of two; None where that
        cannot be known. `given` has the rows of its inputs, and counts tokens."""
        return Expected(Volume() if self.kind == "rows" else None)

    def expand(self) -> Mapping[str, Stage]:
        """Hidden stages this one reads (name → stage): run, cached and shared like any other."""
        return {}

    def foreseen(self) -> Mapping[str, Stage]:
        """For `plan`: the stages it will have made by `context.run` (name → stage), as far as that is known before."""
        return {}

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        """Make the artefact: write its files under `out`, return its metrics. Inputs arrive as opened artefacts,
        each under its field's name (and `expand()`'s names), in containers shaped like the field's."""
        raise NotImplementedError(f"{type(self).__name__} defines neither make() nor a row shape")

    def replace(self, where: str | tuple[Stage, str], value: Any) -> Self:
        """This graph with one stage changed wherever it occurs: see `replace`."""
        from graftline.stages.value_graph import replace

        return replace(self, where, value)


class View(Stage):
    """One part of a stage that makes several: `split.train`.

    Args:
        of: the stage.
        part: the name of the part.
    """

    makes = "rows"
    of: Stage
    part: str

    def check(self) -> None:
        if self.part not in self.of.views:
            raise InvalidField(
                f"{type(self.of).__name__} has no part {self.part!r}", where="View.part", do=f"use {self.of.views}"
            )

    def columns_made(self) -> Columns:
        return self.of.columns

    @property
    def name(self) -> str:
        return self.label or f"{self.of.name}.{self.part}"


class Context(Protocol):
    """What a running stage may ask for. `pipelines/` implements it."""

    @property
    def scratch(self) -> Path:
        """A local folder of this stage and its inputs that outlives a kill and goes when the stage is committed."""

    @property
    def resources(self) -> Resources:
        """What the stage was given, `cpus` and `threads` filled in."""

    def run(self, stage: Stage) -> Artefact:
        """Another stage's artefact: taken from the store, else made now (once, whoever asks)."""

    def watch(self, stage: Stage, metric: str, goes_on: Callable[[int, float], bool]) -> Artefact:
        """`run`, of a stage that may be ended early: each time it logs `metric`, it waits for `goes_on(step, value)`,
        and where that is False it ends there: `Stopped` is raised. Of one that goes on after an interruption, what it
        logged before is asked about first."""

    def opened(self, stage: Stage) -> Artefact:
        """The artefact of one of this stage's inputs, at whatever depth it is held."""

    def seed(self, row_id: str, attempt: int = 0) -> int:
        """A seed that depends on the stage's `seed` field, the row and the attempt alone."""

    def engine(self, model: Stage, adapters: Mapping[str, Stage] | None = None) -> AbstractContextManager[Engine]:
        """The engine of a model stage (of an adapter: its base with the adapter loaded under the name `adapter`),
        with further adapters under names of their own. Closed on leaving the context."""

    def file(self, path: str) -> str:
        """The absolute path of a file the pipeline names."""

    def pinned(self, name: str) -> str | None:
        """What `Specification.pins` had recorded under this name when the run was planned."""

    def progress(self, done: int, total: int, **numbers: float) -> None:
        """Show how far it is, with a few numbers worth seeing."""

    def log(self, step: int, **numbers: float) -> None:
        """Append to the stage's metrics log (`log.jsonl`)."""


class Takes:
    """Field annotation: a stage of this kind. A model may be an adapter too, which knows its base."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def validate(self, value: Any) -> Any:
        if not isinstance(value, Stage):
            raise PydanticCustomError(
                "wrong_kind",
                "takes a stage that makes {kind}, not {given}",
                {"kind": self.kind, "given": short(value)},
            )
        if value.placeholder:
            return value
        if value.kind != self.kind and not (self.kind == "model" and value.kind == "adapter"):
            raise PydanticCustomError(
                "wrong_kind",
                "takes {kind}, but {given} makes {made}",
                {"kind": self.kind, "given": type(value).__name__, "made": value.kind},
            )
        if value.views:
            raise PydanticCustomError(
                "wrong_kind",
                "{given} makes several parts; say which: {parts}",
                {"given": type(value).__name__, "parts": ", ".join(f".{part}" for part in value.views)},
            )
        return value


Rows = Annotated[Stage, Takes("rows")]
Model = Annotated[Stage, Takes("model")]
Adapter = Annotated[Stage, Takes("adapter")]
EmbeddingModel = Annotated[Stage, Takes("embedder")]
Report = Annotated[Stage, Takes("report")]
Service = Annotated[Stage, Takes("service")]


def _stages_of(value: Any, path: str) -> Iterator[tuple[str, Stage]]:
    if isinstance(value, Stage):
        yield path, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _stages_of(item, f"{path}.{index}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _stages_of(item, f"{path}.{key}")


def _check_columns(path: str, stage: Stage, needed: Columns) -> None:
    for column, type_ in needed.items():
        have = stage.columns.get(column)
        if have is None:
            from graftline.stages.methods import suppliers

            found = suppliers(column)
            raise MissingColumn(
                f"needs the column {column!r}, which {stage.name} does not have (it has {', '.join(stage.columns)})",
                where=path,
                do=f"add {' or '.join(found)} before it" if found else f"add a stage that makes {column!r} before it",
            )
        if have != type_ and type_ != "any" and not (type_ == "number" and have in NUMBERS):
            what = f"needs {column!r} as {type_}, {stage.name} has it as {have}"
            raise MissingColumn(what, where=path, do=f"name another column, or make this one {type_}")
