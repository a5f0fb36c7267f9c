"""Graphs of specifications: walking them, fingerprints, replacing a stage, flat JSON.

Every walk is iterative, over unique nodes: thirty stacked diamonds or a chain of thousands take under a second.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
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
        root: a stage, or a mapping of names to stages, as a pipeline returns it (a path then starts with a name).
        where: a dotted path from the root (`"rows.budget"`, `"adapter.rank"`, `"adapters.tickets.seed"`,
            `"rows.0.path"`), or a stage under the root and a path from it (`(chosen, "budget")`).
        value: the field's new value.

    Raises:
        InvalidField: the path leads nowhere, or the value is refused; `where` is the full path.
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
    for position, part in enumerate(parts[:-1]):  # the last stage on the path owns the change
        node = _step(node, part, shown)
        if isinstance(node, Stage):
            owner, rest = node, parts[position + 1 :]
    if not isinstance(owner, Specification):
        raise InvalidField("names a whole stage", where=shown, do="go on to one of its fields")
    try:
        changed = _set(owner, rest, value, shown)
    except InvalidField as error:
        if error.where == shown:
            raise
        raise type(error)(f"{error.what} ({error.where})", where=shown, do=error.do) from None
    return substitute(root, {owner.key: changed})


def substitute(root: Any, changed: Mapping[str, Specification]) -> Any:
    """The graph under `root` (a specification, or a mapping of names to them) with specifications (by key) replaced,
    and all that hold them rebuilt."""
    now: dict[str, Specification] = {}
    named = isinstance(root, Mapping)
    for node in walk(*(root.values() if named else [root])):
        if node.key in changed:
            now[node.key] = changed[node.key]
        elif any(now[child.key] is not child for child in node.children()):
            now[node.key] = type(node)(
                **{name: mapped(value, lambda child: now[child.key]) for name, value in node.__dict__.items()}
            )
        else:
            now[node.key] = node
    return {name: now[each.key] for name, each in root.items()} if named else now[root.key]


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
