"""What is generated from the methods' files: `__init__.pyi` beside every family's `__init__.py`, and the golden
fingerprints. `graftline methods --write-stubs` writes both; a test holds them current."""

from __future__ import annotations

import ast
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

import graftline.stages
from graftline.stages.errors import GraftlineError, InvalidField
from graftline.stages.methods import families
from graftline.stages.rows import FIXED, Columns
from graftline.stages.specification import Plug, Specification
from graftline.stages.stage import Kind, Stage, Takes
from graftline.stages.value_graph import Named, fingerprints

HEADER = "# Written by `graftline methods --write-stubs` from the files beside it; do not edit.\n\n"
ROOT = Path(__file__).resolve().parents[1]
"""The repository (an installed wheel has no tests to write fingerprints for)."""
GOLDEN = "tests/stages/fingerprints.json"
COLUMN = "score"
"""What every string of a specimen says: also the name of a numeric column its rows have."""


def files(root: Path) -> Iterator[tuple[Path, str]]:
    """Path and text of every generated file of the repository at `root`."""
    yield from stubs()
    yield root / GOLDEN, golden()


def write(generated: Iterable[tuple[Path, str]]) -> list[Path]:
    """Writes the files whose text is another one; answers with their paths."""
    changed = []
    for path, text in generated:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


# --- stubs ----------------------------------------------------------------------------------------------------


def stubs() -> Iterator[tuple[Path, str]]:
    """Path and text of every family's stub, the root's included."""
    yield _path(graftline.stages), stub(graftline.stages, whole=False)
    for family in families():
        yield _path(family), stub(family)


def _path(package: ModuleType) -> Path:
    return Path(package.__file__ or "").with_suffix(".pyi")


def stub(package: ModuleType, whole: bool = True) -> str:
    """The stub of a package: what its source imports by name, its sub-packages, and what its `__getattr__` finds.

    Args:
        whole: all that `__getattr__` finds, else only the functions named in its source (the root would find every
            class of every family; users write the family's name).
    """
    lines = set()
    tree = ast.parse(Path(package.__file__ or "").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != "graftline.stages.family":
            lines |= {(node.module or "", alias.asname or alias.name) for alias in node.names}
    functions = dict(_functions(tree))
    lines |= {(f"{package.__name__}.{module}", name) for name, module in functions.items()}
    if whole:
        lines |= {(getattr(package, name).__module__, name) for name in set(package.__dir__()) - set(functions)}
    folder = Path(package.__file__ or "").parent
    for sub in sorted(folder.iterdir()):
        if (sub / "__init__.py").exists():
            lines.add((package.__name__, sub.name))
    imports: dict[str, list[str]] = {}
    for module, name in sorted(lines):
        imports.setdefault(module, []).append(name)
    text = "".join(
        f"from {module} import {name} as {name}\n" for module, found in sorted(imports.items()) for name in found
    )
    return HEADER + text


def _functions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name and module of what the call `family(__name__, name="module")` names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "family":
            for keyword in node.keywords:
                if keyword.arg and isinstance(keyword.value, ast.Constant):
                    yield keyword.arg, str(keyword.value.value)


# --- golden fingerprints --------------------------------------------------------------------------------------


class AnyRows(Stage):
    """Stands for rows with any columns in a specimen."""

    makes = "rows"
    has: Mapping[str, str] = {}

    def columns_made(self) -> Columns:
        return {**FIXED, **self.has}


class AnyOther(Stage):
    """Stands for a model, adapter, report or service in a specimen."""

    makes: ClassVar[Kind] = "model"
    of: str = "model"

    @property
    def kind(self) -> Kind:
        return typing.cast(Kind, self.of)


def golden() -> str:
    """Every method's fingerprint, in a specimen with its required fields only, as JSON."""
    return json.dumps({kind.qualified: fingerprint(specimen(kind)) for kind in kinds()}, indent=2) + "\n"


def fingerprint(stage: Specification) -> str:
    return fingerprints([stage], Named())[stage.key]


def kinds() -> list[type[Specification]]:
    """Every stage and plug class Graftline ships that has an id."""
    found = {}
    for family in families():
        for name in family.__dir__():
            kind = getattr(family, name)
            if isinstance(kind, type) and issubclass(kind, (Stage, Plug)) and kind.method:
                found[kind.qualified] = kind
    return [found[name] for name in sorted(found)]


def specimen(kind: type[Specification]) -> Specification:
    """A specification of this class with its required fields alone, filled in by their types.

    A class whose fields must agree with each other names such values itself, in a class variable `specimen`
    (field → value).

    Raises:
        InvalidField: the values made up are refused.
    """
    told: Mapping[str, Any] = getattr(kind, "specimen", {})
    fields = dict(told)
    for name, field in kind.model_fields.items():
        if field.is_required() and name not in told:
            fields[name] = value_of(field.annotation, field.metadata, kind)
    try:
        return kind(**fields)
    except GraftlineError as error:
        raise InvalidField(
            f"cannot be made from its fields' types alone ({error})",
            where=kind.qualified,
            do="give it a class variable `specimen`, field → value",
        ) from error


def value_of(annotation: Any, marks: list[Any] | tuple[Any, ...], owner: type[Specification]) -> Any:
    """A value that a field of this type takes."""
    for mark in marks:
        if isinstance(mark, Takes):
            return _stage_of(mark.kind, owner)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return value_of(inner[0], inner[1:], owner)
    if origin is Literal:
        return inner[0]
    if origin in (Union, types.UnionType):
        return value_of(next(each for each in inner if each is not type(None)), marks, owner)
    if origin is tuple:
        if Ellipsis in inner:
            least = max((mark.min_length for mark in marks if isinstance(mark, MinLen)), default=1)
            most = min((mark.max_length for mark in marks if isinstance(mark, MaxLen)), default=least)
            return tuple(value_of(inner[0], (), owner) for _ in range(min(least, most)))
        return tuple(value_of(each, (), owner) for each in inner)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {value_of(inner[0], (), owner): value_of(inner[1], (), owner)}
    if isinstance(annotation, type):
        if issubclass(annotation, Plug):
            return specimen(_concrete(annotation))
        if issubclass(annotation, Stage):
            return _stage_of("rows", owner)
        if issubclass(annotation, bool):
            return False
        if issubclass(annotation, int):
            return int(_number(marks, 1))
        if issubclass(annotation, float):
            return float(_number(marks, 0.5))
        if issubclass(annotation, str):
            return COLUMN
    raise InvalidField(
        f"no specimen of the type {annotation} is known", where=owner.qualified, do="give it a `specimen`"
    )


def _stage_of(kind: Kind, owner: type[Specification]) -> Stage:
    if kind != "rows":
        return AnyOther(of=kind)
    needed = {name: {"number": "float64", "any": "string"}.get(type_, type_) for name, type_ in _needs(owner).items()}
    return AnyRows(has={COLUMN: "float64", **{name: type_ for name, type_ in needed.items() if name not in FIXED}})


def _needs(owner: type[Specification]) -> Columns:
    return owner.needs if issubclass(owner, Stage) else {}


def _concrete(plug: type[Plug]) -> type[Specification]:
    """A plug class that fills the slot: itself if it has an id, else the first by name below it."""
    below = [kind for kind in kinds() if issubclass(kind, plug)]
    return plug if plug.method or not below else below[0]


def _number(marks: list[Any] | tuple[Any, ...], wish: float) -> float:
    for mark in marks:
        inner = getattr(mark, "metadata", None)  # Field(ge=1) inside an Annotated of an inner type
        if inner:
            wish = _number(inner, wish)
        if isinstance(mark, Ge):
            wish = max(wish, float(mark.ge))  # type: ignore[arg-type]
        if isinstance(mark, Gt):
            wish = max(wish, float(mark.gt) + 1 if float(mark.gt) >= 1 else wish)  # type: ignore[arg-type]
        if isinstance(mark, Le):
            wish = min(wish, float(mark.le))  # type: ignore[arg-type]
        if isinstance(mark, Lt) and wish >= float(mark.lt):  # type: ignore[arg-type]
            wish = float(mark.lt) / 2  # type: ignore[arg-type]
    return wish
