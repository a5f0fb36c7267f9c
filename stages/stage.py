"""A pipeline is a value: stages, plugs, views, and what one can do with a graph of them.

A `Stage` is a frozen pydantic model whose inputs are other stages, held in its fields at any depth; nesting them is
the graph. Each specification computes one key at construction, over its own fields and its children's keys; equality,
hashing, pickling and JSON use the key, so that a graph (a DAG, not a tree) costs one visit a node. Nothing here
imports Ray, torch or Arrow.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from graftline.stages.errors import InvalidField, MissingColumn, UnknownStage, WrongKind
from graftline.stages.rows import FIXED, NUMBERS, Columns, canonical, digest

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact
    from graftline.stages.lm.engine import Engine

Kind = Literal["rows", "model", "adapter", "report", "service"]


@dataclass(frozen=True)
class Paper:
    """A paper a method comes from: its exact title; year and arXiv id only where a source states them."""

    title: str
    year: int | None = None
    arxiv: str | None = None


class Execution:
    """Marks a field that says how, where or how fast, never what: `Annotated[int, Execution]`. Not fingerprinted."""


class Added:
    """Marks a field added after the class's first release: not fingerprinted while it equals its default."""


class FrozenMapping(Mapping[Any, Any]):
    """An immutable mapping, ordered by its keys' canonical form."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[Any, Any]) -> None:
        self._items = dict(sorted(items.items(), key=lambda item: canonical(plain(item[0], _reference))))

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


class Pins(Protocol):
    """What stands for the outside world in a fingerprint, as `plan` finds it and the run's lock keeps it."""

    def file(self, path: str) -> str:
        """Content digest of a file or folder (a relative path counts from the pipeline file's folder)."""

    def pinned(self, name: str, find: Callable[[], str]) -> str:
        """The identity recorded under this name, else what `find` answers, recorded from now on."""


class _Fields(dict[str, Any]):
    """Fields on their way from a specification's `__init__` to its validator."""


class Specification(BaseModel):
    """A frozen value with a key: what `Stage` and `Plug` share."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=False, protected_namespaces=()
    )

    version: ClassVar[int] = 1
    """Raise it when the same fields come to mean something else: fingerprints change."""
    method: ClassVar[str] = ""
    """The specification's id, such as `select.top_k`."""
    papers: ClassVar[tuple[Paper, ...]] = ()
    origin: ClassVar[str] = ""
    """Where a method without a paper comes from, in one line."""
    tier: ClassVar[int] = 1
    qualified: ClassVar[str] = ""
    """The class's name in fingerprints and JSON: its module (of a user's file: the stem) and name."""

    _key: str = PrivateAttr("")

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        # Kept on the class, since on a Ray worker `__main__` is another file.
        module = cls.__module__
        if module == "__main__":
            module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").stem
        cls.qualified = f"{module}.{cls.__qualname__}"

    def __init__(self, /, **fields: Any) -> None:
        given = _Fields((name, _thaw(value)) for name, value in fields.items())
        try:
            self.__pydantic_validator__.validate_python(given, self_instance=self)
        except ValidationError as error:
            raise _invalid(type(self), error) from None

    @model_validator(mode="wrap")
    @classmethod
    def _built_by_its_class(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse a mapping for a plug: pydantic, strict or not, would build the slot's own class from it."""
        if isinstance(value, (cls, _Fields)):
            return validate(value)
        raise PydanticCustomError(
            "wrong_kind",
            "takes a value of type {expected}, not {given}",
            {"expected": cls.__name__, "given": _short(value)},
        )

    def model_post_init(self, context: Any, /) -> None:
        for name in type(self).model_fields:
            self.__dict__[name] = _freeze(self.__dict__[name])
        own = {name: plain(self.__dict__[name], _reference, f"{type(self).__name__}.{name}") for name in self._names()}
        self._key = digest([self.qualified, self.version, own])
        self.check()

    def check(self) -> None:
        """Checks across fields, at construction. Raises `InvalidField`."""

    def pins(self, resolve: Pins) -> Mapping[str, Any]:
        """Values that replace fields in the fingerprint: a file's content for its path, a revision for a name."""
        return {}

    @property
    def key(self) -> str:
        """64 hex digits over the class and all fields as written, execution fields included."""
        return self._key

    @classmethod
    def _names(cls) -> list[str]:
        return _sorted_fields(cls)

    @classmethod
    def is_execution(cls, name: str) -> bool:
        """Whether a field is an execution field."""
        return any(mark is Execution for mark in cls.model_fields[name].metadata)

    def semantic(self, pins: Pins) -> dict[str, Any]:
        """Field → value of what the fingerprint covers."""
        pinned = self.pins(pins)
        values = {}
        for name in self._names():
            field = type(self).model_fields[name]
            if self.is_execution(name):
                continue
            if any(mark is Added for mark in field.metadata) and self.__dict__[name] == field.get_default(
                call_default_factory=True
            ):
                continue
            values[name] = pinned.get(name, self.__dict__[name])
        return values

    def children(self) -> list[Specification]:
        """The specifications directly in the fields, at any depth of containers, in field order."""
        found: dict[str, Specification] = {}
        for name in self._names():
            for child in _specifications(self.__dict__[name]):
                found.setdefault(child.key, child)
        return list(found.values())

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Specification) and type(self) is type(other) and self.key == other.key
        )

    def __hash__(self) -> int:
        return int(self.key[:15], 16)

    def __repr__(self) -> str:
        shown = []
        for name, field in type(self).model_fields.items():
            value = self.__dict__[name]
            if field.is_required() or value != field.get_default(call_default_factory=True):
                shown.append(f"{name}={_short(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickle, (to_json({"": self}), {type(each).qualified: type(each) for each in walk(self)}))

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        return to_json({"": self})


class Plug(Specification):
    """A smaller value that fills a slot of a stage."""


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
                if stage.kind == "rows":
                    _check_columns(path, stage, needed)
        if self.kind == "rows":
            self._columns = dict(self.columns_made())

    @property
    def kind(self) -> Kind:
        """What it makes: rows, model, adapter, report or service."""
        return self.makes

    @property
    def name(self) -> str:
        """How people see it: the label, else the class's name."""
        return self.label or type(self).__name__

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

    def rows_expected(self, rows: Mapping[str, int], file: Callable[[str], str]) -> int | Mapping[str, int] | None:
        """For `plan`: about how many rows it makes (a stage with views: part → rows); None where that is not known.
        `rows`: those of its input fields (of a container: their sum) where known; `file` makes a path absolute."""
        return None

    def calls_expected(self, rows: Mapping[str, int]) -> tuple[int | None, int | None, int | None]:
        """For `plan`: about how many model calls, tokens in and tokens out it takes; None where that is not known."""
        return 0, 0, 0

    def expand(self) -> Mapping[str, Stage]:
        """Hidden stages this one reads (name → stage): run, cached and shared like any other."""
        return {}

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        """Make the artefact: write its files under `out`, return its metrics. Inputs arrive as opened artefacts,
        each under its field's name (and `expand()`'s names), in containers shaped like the field's."""
        raise NotImplementedError(f"{type(self).__name__} defines neither make() nor a row shape")

    def replace(self, where: str | tuple[Stage, str], value: Any) -> Self:
        """This graph with one stage changed wherever it occurs: see `replace`."""
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
                {"kind": self.kind, "given": _short(value)},
            )
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
Report = Annotated[Stage, Takes("report")]
Service = Annotated[Stage, Takes("service")]


# --- graphs: every walk is iterative, over unique nodes ---------------------------------------------------------


def walk(*roots: Specification) -> list[Specification]:
    """Every specification under the roots, each once, children before parents, in a fixed order."""
    order: dict[str, Specification] = {}
    stack: list[tuple[Specification, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node.key in order:
            continue
        if ready:
            order[node.key] = node
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.children()) if child.key not in order)
    return list(order.values())


def inputs(stage: Stage) -> list[Stage]:
    """The stages a stage reads directly: through its fields and its plugs' fields, and those of `expand()`."""
    found: dict[str, Stage] = {}
    stack: list[Specification] = list(reversed([*stage.children(), *stage.expand().values()]))
    while stack:
        node = stack.pop()
        if isinstance(node, Stage):
            found.setdefault(node.key, node)
        else:
            stack.extend(reversed(node.children()))
    return list(found.values())


def fingerprints(roots: Sequence[Specification], pins: Pins) -> dict[str, str]:
    """Key → fingerprint (64 hex digits) of every specification under the roots: the class, its version and its
    semantic fields, with files by content and models by revision."""
    known: dict[str, str] = {}
    for node in walk(*roots):
        values = {
            name: plain(value, lambda child: {"$": known[child.key]}) for name, value in node.semantic(pins).items()
        }
        known[node.key] = digest([node.qualified, node.version, values])
    return known


def replace(root: Any, where: str | tuple[Stage, str], value: Any) -> Any:
    """The graph under `root` with one stage changed wherever it occurs.

    Args:
        root: a stage.
        where: a dotted path from the root (`"rows.budget"`, `"adapter.rank"`, `"adapters.tickets.seed"`,
            `"rows.0.path"`), or a stage under the root and a path from it (`(chosen, "budget")`).
        value: the field's new value.

    Raises:
        InvalidField: the path leads nowhere, or the value is refused; `where` is the full path.
        UnknownStage: the stage does not occur under the root.
    """
    if isinstance(where, tuple):
        target, path = where
        if not any(node == target for node in walk(root)):
            raise UnknownStage(
                f"{target!r} does not occur under {type(root).__name__}", do="name a stage it is made of"
            )
        shown = f"({type(target).__name__}, {path!r})"
    else:
        target, path, shown = root, where, where
    parts = path.split(".")
    owner, rest = target, parts
    node: Any = target
    for position, part in enumerate(parts[:-1]):  # the last stage on the path owns the change
        node = _step(node, part, shown)
        if isinstance(node, Stage):
            owner, rest = node, parts[position + 1 :]
    try:
        changed = _set(owner, rest, value, shown)
    except InvalidField as error:
        if error.where == shown:
            raise
        raise type(error)(f"{error.what} ({error.where})", where=shown, do=error.do) from None
    return substitute(root, {owner.key: changed})


def substitute(root: Any, changed: Mapping[str, Specification]) -> Any:
    """The graph under `root` with specifications (by key) replaced, and all that hold them rebuilt."""
    now: dict[str, Specification] = {}
    for node in walk(root):
        if node.key in changed:
            now[node.key] = changed[node.key]
        elif any(now[child.key] is not child for child in node.children()):
            now[node.key] = type(node)(
                **{name: _mapped(value, lambda child: now[child.key]) for name, value in node.__dict__.items()}
            )
        else:
            now[node.key] = node
    return now[root.key]


def to_json(roots: Mapping[str, Specification]) -> dict[str, Any]:
    """A flat table: key → class, version, fields; a child is `{"$": key}`, a mapping `{"map": [[key, value], …]}`."""
    return {
        "schema": 1,
        "roots": {name: root.key for name, root in roots.items()},
        "stages": {
            node.key: {
                "class": node.qualified,
                "version": node.version,
                "fields": {name: plain(node.__dict__[name], _reference) for name in node._names()},
            }
            for node in walk(*roots.values())
        },
    }


def from_json(table: Mapping[str, Any], classes: Mapping[str, type[Specification]] | None = None) -> dict[str, Any]:
    """The roots of a flat table.

    Args:
        classes: qualified name → class, of classes outside `graftline.stages` (a user's own).

    Raises:
        UnknownStage: a class that is not known, or whose version is another.
        InvalidField: a field that is refused.
    """
    built: dict[str, Specification] = {}
    for key, entry in table["stages"].items():
        kind = _find_class(entry["class"], classes or {})
        if entry["version"] != kind.version:
            raise UnknownStage(
                f"{entry['class']} is version {kind.version} here, the file has {entry['version']}",
                do="run it with the Graftline that wrote it",
            )
        built[key] = kind(**{name: _unplain(value, built) for name, value in entry["fields"].items()})
    return {name: built[key] for name, key in table["roots"].items()}


def _find_class(qualified: str, classes: Mapping[str, type[Specification]]) -> type[Specification]:
    if qualified in classes:
        return classes[qualified]
    module, _, name = qualified.rpartition(".")
    if module == "graftline.stages" or module.startswith("graftline.stages."):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError:
            found = None
        if isinstance(found, type) and issubclass(found, Specification):
            return found
    raise UnknownStage(f"there is no stage class {qualified}", do="run it with the pipeline file that defines it")


def _unpickle(table: dict[str, Any], classes: dict[str, type[Specification]]) -> Any:
    return from_json(table, classes)[""]


# --- values inside fields -------------------------------------------------------------------------------------

PLAIN = frozenset({str, int, float, bool, type(None)})


@functools.cache
def _sorted_fields(kind: type[Specification]) -> list[str]:
    return sorted(kind.model_fields)


def _reference(child: Specification) -> Any:
    return {"$": child.key}


def plain(value: Any, reference: Callable[[Specification], Any], where: str = "") -> Any:
    """A field's value as JSON, its specifications by reference."""
    if type(value) in PLAIN:  # most values; the checks below are slow for a graph of thousands
        return value
    if isinstance(value, Specification):
        return reference(value)
    if isinstance(value, (tuple, list)):
        return [plain(item, reference, where) for item in value]
    if isinstance(value, Mapping):
        return {"map": [[plain(key, reference, where), plain(item, reference, where)] for key, item in value.items()]}
    if isinstance(value, (str, int, float)):
        return value
    raise InvalidField(
        f"{_short(value)} ({type(value).__name__}) is not a value a stage can hold",
        where=where,
        do="use numbers, strings, booleans, None, tuples, mappings, plugs and stages",
    )


def _unplain(value: Any, built: Mapping[str, Specification]) -> Any:
    if isinstance(value, list):
        return tuple(_unplain(item, built) for item in value)
    if isinstance(value, dict):
        if "$" in value:
            return built[value["$"]]
        return {_unplain(key, built): _unplain(item, built) for key, item in value["map"]}
    return value


def _freeze(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, Mapping) and not isinstance(value, FrozenMapping):
        return FrozenMapping({_freeze(key): _freeze(item) for key, item in value.items()})
    return value


def _thaw(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_thaw(item) for item in value)
    if isinstance(value, Mapping):
        return {_thaw(key): _thaw(item) for key, item in value.items()}
    return value


def _mapped(value: Any, change: Callable[[Specification], Specification]) -> Any:
    if isinstance(value, Specification):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    return value


def _specifications(value: Any) -> Iterator[Specification]:
    if type(value) in PLAIN:
        return
    if isinstance(value, Specification):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _specifications(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _specifications(key)
            yield from _specifications(item)


def _stages_of(value: Any, path: str) -> Iterator[tuple[str, Stage]]:
    if isinstance(value, Stage):
        yield path, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _stages_of(item, f"{path}.{index}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _stages_of(item, f"{path}.{key}")


def _step(node: Any, part: str, shown: str) -> Any:
    if isinstance(node, Specification) and part in type(node).model_fields:
        return node.__dict__[part]
    if isinstance(node, Mapping) and part in node:
        return node[part]
    if isinstance(node, tuple) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    what = f"{type(node).__name__} has no {part!r}"
    options = sorted(type(node).model_fields) if isinstance(node, Specification) else ()
    raise InvalidField(what, where=shown, do=f"use one of {', '.join(options)}" if options else "")


def _set(node: Any, parts: list[str], value: Any, shown: str) -> Any:
    """A copy of `node` with the value at the end of the path changed."""
    inner = _step(node, parts[0], shown)
    new = value if len(parts) == 1 else _set(inner, parts[1:], value, shown)
    if isinstance(node, Specification):
        return type(node)(**{**node.__dict__, parts[0]: new})
    if isinstance(node, tuple):
        return tuple(new if index == int(parts[0]) else item for index, item in enumerate(node))
    return {key: new if key == parts[0] else item for key, item in node.items()}


def _short(value: Any) -> str:
    if isinstance(value, Stage):
        return f"<{value.name} {value.key[:6]}>"
    if isinstance(value, tuple):
        return f"({', '.join(_short(item) for item in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_short(key)}: {_short(item)}" for key, item in value.items()) + "}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
            raise MissingColumn(f"needs {column!r} as {type_}, {stage.name} has it as {have}", where=path)


def _invalid(kind: type[Specification], error: ValidationError) -> InvalidField:
    """pydantic's finding as one of our errors, with the field's full path."""
    found = error.errors(include_url=False)
    messages = []
    for each in found:
        loc = [str(part) for part in each["loc"] if not str(part).startswith("function-wrap[")]  # of a union
        path = ".".join([kind.__name__, *loc])
        given = "" if each["type"] in ("missing", "wrong_kind") else f" (given {_short(each['input'])})"
        messages.append((path, f"{each['msg'][0].lower()}{each['msg'][1:]}{given}"))
    first = WrongKind if found[0]["type"] == "wrong_kind" else InvalidField
    what = "; ".join([messages[0][1], *(f"{path}: {message}" for path, message in messages[1:])])
    unknown = [each for each in found if each["type"] == "extra_forbidden"]
    fields = f"its fields are {', '.join(kind.model_fields)}" if unknown else ""
    return first(what, where=messages[0][0], do=fields)
