"""Graphs of specifications: walking them, fingerprints, replacing a stage, flat JSON.

Every walk is iterative, over unique nodes: thirty stacked diamonds or a chain of thousands take under a second.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from graftline.stages.errors import InvalidField, UnknownStage
from graftline.stages.rows import digest
from graftline.stages.specification import Pins, Specification, mapped, plain, reference, unplain
from graftline.stages.stage import Stage


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
    """The stages a stage reads directly: through its fields (patterns apart) and its plugs' fields, and those of
    `expand()`."""
    found: dict[str, Stage] = {}
    stack: list[Specification] = list(reversed([*stage.children(templates=False), *stage.expand().values()]))
    while stack:
        node = stack.pop()
        if isinstance(node, Stage):
            found.setdefault(node.key, node)
        else:
            stack.extend(reversed(node.children()))
    return list(found.values())


def frontier(variants: Iterable[Stage], besides: Collection[Stage] = ()) -> dict[str, Stage]:
    """The deepest stages that several stages' graphs have in common (key → stage), hidden ones included; the stages
    themselves are never among them, nor what only `besides` read."""
    graphs = [everything(variant) for variant in variants]
    shared = set.intersection(*(set(graph) for graph in graphs))
    found: dict[str, Stage] = {}
    for graph in graphs:
        for stage, reads in graph.values():
            if stage not in besides and (stage.key not in shared or stage.key == next(reversed(graph))):
                found |= {each.key: each for each in reads if each.key in shared}
    return found


def everything(root: Stage) -> dict[str, tuple[Stage, list[Stage]]]:
    """Key → stage and what it reads, of all that is made for a stage, hidden ones included; the stage itself last."""
    found: dict[str, tuple[Stage, list[Stage]]] = {}
    stack: list[tuple[Stage, list[Stage] | None]] = [(root, None)]
    while stack:
        stage, reads = stack.pop()
        if stage.key in found:
            continue
        if reads is not None:
            found[stage.key] = (stage, reads)
            continue
        reads = inputs(stage)
        stack.append((stage, reads))
        stack += [(each, None) for each in reads]
    return found


class Named:
    """Pins that answer with the names they are asked for: such a fingerprint needs no file and no network."""

    def file(self, path: str) -> str:
        return f"the content of {path}"

    def pinned(self, name: str, find: Callable[[], str]) -> str:
        return f"what {name} is"


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
        root: a stage, or a mapping of names to stages, as a pipeline returns it (a path then starts with a name).
        where: a dotted path from the root (`"rows.budget"`, `"adapter.rank"`, `"adapters.tickets.seed"`,
            `"rows.0.path"`), or a stage under the root and a path from it (`(chosen, "budget")`).
        value: the field's new value.

    Raises:
        InvalidField: the path leads nowhere, or the value is refused; `where` is the full path.
        UnknownStage: the stage does not occur under the root.
    """
    owner, rest, shown = located(root, where)
    return substitute(root, {owner.key: _changed(owner, rest, value, shown)})


def varied(root: Any, changes: Mapping[str | tuple[Stage, str], Any]) -> dict[str, Any]:
    """Old key → what stands in its place, of everything under `root`, with several fields changed at once: each `where`
    names its stage as it is under `root` now, whatever else changes in it or above it.

    Raises:
        InvalidField, UnknownStage: as for `replace`.
    """
    owned: dict[str, list[tuple[list[str], Any, str]]] = {}
    for where, value in changes.items():
        owner, rest, shown = located(root, where)
        owned.setdefault(owner.key, []).append((rest, value, shown))

    def change(node: Specification, rebuild: Callable[[], Specification]) -> Specification:
        new = rebuild()
        for rest, value, shown in owned.get(node.key, ()):
            new = _changed(new, rest, value, shown)
        return new

    return _rebuilt(root, change)


def located(root: Any, where: str | tuple[Stage, str]) -> tuple[Any, list[str], str]:
    """The stage that owns a field (the last one on the path), the rest of the path from there, and how errors name it.

    Raises:
        InvalidField: the path leads nowhere.
        UnknownStage: the stage does not occur under the root.
    """
    roots = list(root.values()) if isinstance(root, Mapping) else [root]
    shown_root = "the pipeline" if isinstance(root, Mapping) else type(root).__name__
    if isinstance(where, tuple):
        target, path = where
        if not any(node == target for node in walk(*roots)):
            raise UnknownStage(f"{target!r} does not occur under {shown_root}", do="name a stage it is made of")
        shown = f"({type(target).__name__}, {path!r})"
    else:
        target, path, shown = root, where, where
    parts = path.split(".")
    owner, rest = target, parts
    node: Any = target
    for position, part in enumerate(parts[:-1]):
        node = _step(node, part, shown)
        if isinstance(node, Stage):
            owner, rest = node, parts[position + 1 :]
    if not isinstance(owner, Specification):
        raise InvalidField("names a whole stage", where=shown, do="go on to one of its fields")
    _step(node, parts[-1], shown)
    return owner, rest, shown


def substitute(root: Any, changed: Mapping[str, Specification]) -> Any:
    """The graph under `root` (a specification, or a mapping of names to them) with specifications (by key) replaced,
    and all that hold them rebuilt."""
    now = _rebuilt(root, _put(changed))
    return {name: now[each.key] for name, each in root.items()} if isinstance(root, Mapping) else now[root.key]


def fill(root: Any, changed: Mapping[str, Any]) -> Any:
    """The graph under `root` with placeholders (by key) filled; those that belong to an inner one (`binds`) stay."""
    return _rebuilt(root, _put(changed), filling=True)[root.key]


def _put(changed: Mapping[str, Any]) -> Callable[[Any, Callable[[], Any]], Any]:
    return lambda node, rebuild: changed[node.key] if node.key in changed else rebuild()


def _rebuilt(root: Any, change: Callable[[Any, Callable[[], Any]], Any], filling: bool = False) -> dict[str, Any]:
    """Old key → what `change` answers, of each specification under `root`, children first; it is given the
    specification, and a function that gives it with its changed children."""
    now: dict[str, Any] = {}
    for node in walk(*(root.values() if isinstance(root, Mapping) else [root])):

        def rebuild(node: Any = node) -> Any:
            own = filling and node.binds
            if all(now[child.key] is child for child in node.children(templates=not own)):
                return node
            return type(node)(
                **{
                    name: value if own and node.is_template(name) else mapped(value, lambda child: now[child.key])
                    for name, value in node.__dict__.items()
                }
            )

        now[node.key] = change(node, rebuild)
    return now


def to_json(roots: Mapping[str, Specification]) -> dict[str, Any]:
    """A flat table: key → class, version, fields; a child is `{"$": key}`, a mapping `{"map": [[key, value], …]}`."""
    return {
        "schema": 1,
        "roots": {name: root.key for name, root in roots.items()},
        "stages": {
            node.key: {
                "class": node.qualified,
                "version": node.version,
                "fields": {name: plain(node.__dict__[name], reference) for name in node._names()},
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
        built[key] = kind(**{name: unplain(value, built) for name, value in entry["fields"].items()})
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


def unpickled(table: dict[str, Any], classes: dict[str, type[Specification]]) -> Any:
    """A specification from its pickle: its flat table, and its classes by name."""
    return from_json(table, classes)[""]


def _changed(owner: Any, rest: list[str], value: Any, shown: str) -> Any:
    """A stage with one field changed; errors name the whole path."""
    try:
        return _set(owner, rest, value, shown)
    except InvalidField as error:
        if error.where == shown:
            raise
        raise type(error)(f"{error.what} ({error.where})", where=shown, do=error.do) from None


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
