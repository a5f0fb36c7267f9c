"""Every method shipped: each semantic field moves its fingerprint, through any nesting, and no execution field does."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pytest

from graftline.pipelines import stubs
from graftline.stages.errors import GraftlineError
from graftline.stages.shapes import Source
from graftline.stages.specification import Specification
from graftline.stages.stage import Resources, Stage, Takes
from graftline.stages.value_graph import from_json, substitute, to_json, walk

KINDS = stubs.kinds()


class Another(Stage):
    """Another model, adapter or report than a specimen's."""

    makes = "model"
    of: str = "model"

    @property
    def kind(self) -> Any:
        return self.of


def specimen(kind: type[Specification]) -> Specification:
    """A specimen whose rows have one numeric column more."""
    made = stubs.specimen(kind)
    rows = {node.key: node for node in walk(made) if isinstance(node, stubs.AnyRows)}
    return substitute(made, {key: stubs.AnyRows(has={**node.has, "other": "float64"}) for key, node in rows.items()})


class Holder(Source):
    """Holds a specification two levels down, in a mapping in a tuple."""

    deep: tuple[Mapping[str, Any], ...] = ()


def others(annotation: Any, value: Any, marks: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Values of a field's type, other than the one it has."""
    if any(isinstance(mark, Takes) for mark in marks):
        if isinstance(value, Stage) and value.kind == "rows":  # what it needs, and a column more
            yield stubs.AnyRows(has={**value.columns, "further": "string"})
        yield stubs.AnyRows(has={stubs.COLUMN: "float64", "other": "float64", "third": "string"})
        yield from (Another(of=kind) for kind in ("model", "adapter", "embedder", "report"))
        return
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from others(inner[0], value, (*marks, *inner[1:]))
    elif origin is Literal:
        yield from (each for each in inner if each != value)
    elif origin in (typing.Union, types.UnionType):
        for each in inner:
            if each is type(None):
                yield None
            else:
                yield from others(each, value)
    elif origin is tuple:
        if isinstance(value, tuple) and value and all(isinstance(each, float) for each in value):
            yield tuple(reversed(value))
            yield (*(each / 2 for each in value[:-1]), value[-1] + sum(value[:-1]) / 2)
        for each in others(inner[0], value[0] if value else None):
            yield (*(value or ()), each)
            yield (each, *(value or ())[1:])
            yield (each,)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        for key in value or ():
            for each in others(inner[1], value[key]):
                yield {**value, key: each}
        for each in others(inner[1], None):
            yield {**(value or {}), "another": each}
    elif annotation is bool:
        yield not value
    elif annotation is int:
        yield from ((value or 0) + 1, (value or 0) + 128, max(0, (value or 1) - 1))
    elif annotation is float:
        yield from ((value or 0.0) / 2, (value or 0.25) * 1.25, 0.125, (value or 0.0) + 1)
    elif annotation is str:
        yield from ("other", "answer", "group", "{text} more", "a b", ";", "https://host/v1")
    elif isinstance(annotation, type) and issubclass(annotation, Resources):
        yield Resources(cpus=7.0)
    elif isinstance(annotation, type) and issubclass(annotation, Specification):
        for kind in [each for each in KINDS if issubclass(each, annotation)] or [annotation]:
            if kind is not Specification:
                yield stubs.specimen(kind)
                if isinstance(value, Specification):
                    yield from changed(value)

        class Own(annotation):  # type: ignore[misc,valid-type]
            """A user's own, for a slot of which one method is shipped."""

        yield Own()


def changed(made: Specification) -> Iterator[Specification]:
    """A specification with one semantic field changed, for each."""
    for name in type(made).model_fields:
        new = None if made.is_execution(name) else changed_field(made, name)
        if new is not None:
            yield new


def changed_field(made: Specification, name: str) -> Specification | None:
    field = type(made).model_fields[name]
    for value in others(field.annotation, getattr(made, name), tuple(field.metadata)):
        try:
            new = type(made)(**{**made.__dict__, name: value})
        except GraftlineError:
            continue
        if new != made:
            return new
    return None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.qualified.removeprefix("graftline.stages."))
def test_semantic_fields_and_only_they_move_the_fingerprint(kind: type[Specification]) -> None:
    made = specimen(kind)
    before = stubs.fingerprint(made)
    holder = Holder(deep=({"a": made},))
    around = stubs.fingerprint(holder)
    for name in kind.model_fields:
        new = changed_field(made, name)
        assert new is not None, f"no other value found for {kind.qualified}.{name}"
        moved = stubs.fingerprint(new) != before
        assert moved != kind.is_execution(name), f"{kind.qualified}.{name}: {getattr(new, name)!r}"
        nested = substitute(holder, {made.key: new})
        assert (stubs.fingerprint(nested) != around) == moved
        assert nested != holder, "equality sees execution fields, too"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.qualified.removeprefix("graftline.stages."))
def test_json_round_trip(kind: type[Specification]) -> None:
    made = specimen(kind)
    classes = {each.qualified: each for each in (stubs.AnyRows, stubs.AnyOther)}
    assert from_json(to_json({"x": made}), classes) == {"x": made}
    assert all(isinstance(node, Specification) for node in walk(made)) and (isinstance(made, Stage) or made.key)
