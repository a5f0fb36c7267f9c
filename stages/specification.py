"""A frozen value with a key: what stages and plugs have in common.

A specification computes one key at construction, over its own fields and its children's keys; equality, hashing,
pickling and JSON use the key, so that a graph (a DAG, not a tree) costs one visit a node.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from graftline.stages.errors import InvalidField, WrongKind
from graftline.stages.rows import canonical, digest


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


class Template:
    """Marks a field whose stages are not read: a pattern, of which the stage has variations made (`context.run`)."""


class FrozenMapping(Mapping[Any, Any]):
    """An immutable mapping, ordered by its keys' canonical form."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[Any, Any]) -> None:
        self._items = dict(sorted(items.items(), key=lambda item: canonical(plain(item[0], reference))))

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
    stand_in: ClassVar[Any] = None
    """Of a placeholder for a plain value: what a field that it fills is checked with."""
    placeholder: ClassVar[bool] = False
    """Whether it stands for something that is put in its place later."""
    binds: ClassVar[bool] = False
    """Whether the placeholders in its `Template` fields are its own to fill."""

    _key: str = PrivateAttr("")
    _open: bool = PrivateAttr(False)

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        # Kept on the class, since on a Ray worker `__main__` is another file.
        module = cls.__module__
        if module == "__main__":
            module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").stem
        cls.qualified = f"{module}.{cls.__qualname__}"

    def __init__(self, /, **fields: Any) -> None:
        held = {name: each for name, each in fields.items() if getattr(each, "stand_in", None) is not None}
        given = _Fields((name, thaw(each)) for name, each in fields.items())
        given.update((name, each.stand_in) for name, each in held.items())
        try:
            self.__pydantic_validator__.validate_python(given, self_instance=self)
        except ValidationError as error:
            raise _invalid(type(self), error) from None
        if held:
            self.__dict__.update(held)
            self._seal()

    @model_validator(mode="wrap")
    @classmethod
    def _built_by_its_class(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse a mapping for a plug: pydantic, strict or not, would build the slot's own class from it."""
        if isinstance(value, (cls, _Fields)):
            return validate(value)
        raise PydanticCustomError(
            "wrong_kind",
            "takes a value of type {expected}, not {given}",
            {"expected": cls.__name__, "given": short(value)},
        )

    def model_post_init(self, context: Any, /) -> None:
        for name in type(self).model_fields:
            self.__dict__[name] = freeze(self.__dict__[name])
        self._seal()
        self.check()

    def _seal(self) -> None:
        own = {name: plain(self.__dict__[name], reference, f"{type(self).__name__}.{name}") for name in self._names()}
        self._key = digest([self.qualified, self.version, own])
        self._open = self.placeholder or any(child.is_open for child in self.children(templates=not self.binds))

    def check(self) -> None:
        """Checks across fields, at construction. Raises `InvalidField`."""

    def pins(self, resolve: Pins) -> Mapping[str, Any]:
        """Values that replace fields in the fingerprint: a file's content for its path, a revision for a name."""
        return {}

    @property
    def key(self) -> str:
        """64 hex digits over the class and all fields as written, execution fields included."""
        return self.__pydantic_private__["_key"]  # type: ignore[index]  # `self._key` takes 5 × as long

    @property
    def is_open(self) -> bool:
        """Whether it is, or is made from, a placeholder that is not filled yet: its columns are not known."""
        return self._open

    @classmethod
    def _names(cls) -> list[str]:
        return _sorted_fields(cls)

    @classmethod
    def is_execution(cls, name: str) -> bool:
        """Whether a field is an execution field."""
        return any(mark is Execution for mark in cls.model_fields[name].metadata)

    @classmethod
    def is_template(cls, name: str) -> bool:
        """Whether a field is a pattern."""
        return name in _templates(cls)

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

    def children(self, templates: bool = True) -> list[Specification]:
        """The specifications directly in the fields (`templates`: also in those that are patterns), at any depth of
        containers, in field order."""
        found: dict[str, Specification] = {}
        for name in self._names():
            if not templates and name in _templates(type(self)):
                continue
            for child in specifications(self.__dict__[name]):
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
                shown.append(f"{name}={short(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__

    def in_short(self) -> str:
        """How it is shown inside another one's repr, and in errors."""
        return repr(self)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        from graftline.stages.value_graph import to_json, unpickled, walk

        return (unpickled, (to_json({"": self}), {type(each).qualified: type(each) for each in walk(self)}))

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        from graftline.stages.value_graph import to_json

        return to_json({"": self})


class Plug(Specification):
    """A smaller value that fills a slot of a stage."""


# --- values inside fields -------------------------------------------------------------------------------------

PLAIN = frozenset({str, int, float, bool, type(None)})


@functools.cache
def _sorted_fields(kind: type[Specification]) -> list[str]:
    return sorted(kind.model_fields)


@functools.cache
def _templates(kind: type[Specification]) -> frozenset[str]:
    return frozenset(name for name, field in kind.model_fields.items() if Template in field.metadata)


def reference(child: Specification) -> Any:
    """How JSON refers to a specification."""
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
        pairs = [[plain(key, reference, where), plain(item, reference, where)] for key, item in value.items()]
        # By the key as it is referred to here: a stage's own key sees execution fields, which no fingerprint does.
        return {"map": sorted(pairs, key=lambda pair: canonical(pair[0]))}
    if isinstance(value, (str, int, float)):
        return value
    raise InvalidField(
        f"{short(value)} ({type(value).__name__}) is not a value a stage can hold",
        where=where,
        do="use numbers, strings, booleans, None, tuples, mappings, plugs and stages",
    )


def unplain(value: Any, built: Mapping[str, Specification]) -> Any:
    """A field's value from its JSON; `built`: the specifications it refers to, by key."""
    if isinstance(value, list):
        return tuple(unplain(item, built) for item in value)
    if isinstance(value, dict):
        if "$" in value:
            return built[value["$"]]
        return {unplain(key, built): unplain(item, built) for key, item in value["map"]}
    return value


def freeze(value: Any) -> Any:
    """Containers as tuples and frozen mappings."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    if isinstance(value, Mapping) and not isinstance(value, FrozenMapping):
        return FrozenMapping({freeze(key): freeze(item) for key, item in value.items()})
    return value


def thaw(value: Any) -> Any:
    """Containers as pydantic, being strict, takes them: tuples and dicts."""
    if isinstance(value, (list, tuple)):
        return tuple(thaw(item) for item in value)
    if isinstance(value, Mapping):
        return {thaw(key): thaw(item) for key, item in value.items()}
    return value


def mapped(value: Any, change: Callable[[Specification], Specification]) -> Any:
    """A field's value with each of its specifications changed."""
    if isinstance(value, Specification):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)
    if isinstance(value, Mapping):
        return {mapped(key, change): mapped(item, change) for key, item in value.items()}
    return value


def specifications(value: Any) -> Iterator[Specification]:
    """The specifications in a field's value."""
    if type(value) in PLAIN:
        return
    if isinstance(value, Specification):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from specifications(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from specifications(key)
            yield from specifications(item)


def short(value: Any) -> str:
    """A value in at most 80 characters or so, for reprs and errors."""
    if isinstance(value, tuple):
        return f"({', '.join(short(item) for item in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{short(key)}: {short(item)}" for key, item in value.items()) + "}"
    text = value.in_short() if isinstance(value, Specification) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _invalid(kind: type[Specification], error: ValidationError) -> InvalidField:
    """pydantic's finding as one of our errors, with the field's full path."""
    found = error.errors(include_url=False)
    messages = []
    for each in found:
        loc = [str(part) for part in each["loc"] if not str(part).startswith("function-wrap[")]  # of a union
        path = ".".join([kind.__name__, *loc])
        given = "" if each["type"] in ("missing", "wrong_kind") else f" (given {short(each['input'])})"
        messages.append((path, f"{each['msg'][0].lower()}{each['msg'][1:]}{given}"))
    first = WrongKind if found[0]["type"] == "wrong_kind" else InvalidField
    what = "; ".join([messages[0][1], *(f"{path}: {message}" for path, message in messages[1:])])
    unknown = [each for each in found if each["type"] == "extra_forbidden"]
    fields = f"its fields are {', '.join(kind.model_fields)}" if unknown else ""
    return first(what, where=messages[0][0], do=fields)
