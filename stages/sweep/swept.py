"""Which fields a sweep varies, and the rows by which its trials are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import InvalidField
from graftline.stages.specification import Specification
from graftline.stages.stage import Stage, View
from graftline.stages.value_graph import inputs, located, walk

if TYPE_CHECKING:
    from graftline.stages.sweep.domain import Domain

Where = str | tuple[Stage, str]


@dataclass(frozen=True)
class Swept:
    """One field that a sweep varies.

    Args:
        where: as the sweep's `over` names it.
        owner: the stage it belongs to.
        path: of the field from there.
        name: how tables and errors show it: `adapter.rank`, or with its stage, `TopK.k`.
        domain: the values it takes.
    """

    where: Where
    owner: Stage
    path: tuple[str, ...]
    name: str
    domain: Domain


def swept_fields(root: Stage, over: Mapping[Where, Domain]) -> list[Swept]:
    """The fields, in an order that no label changes: by the place of their stage in the graph, then by path.

    Raises:
        InvalidField: there are none; one leads nowhere, lies within another, or says only how a stage runs.
        UnknownStage: a stage does not occur under the root.
    """
    if not over:
        raise InvalidField("varies nothing", where="Sweep.over", do="name a field and its values")
    places = {node.key: place for place, node in enumerate(walk(root))}
    found = []
    for where, domain in over.items():
        owner, rest, shown = located(root, where)
        _refuse_execution(owner, rest, shown)
        path = where if isinstance(where, str) else where[1]
        name = path if isinstance(where, str) or where[0] == root else f"{where[0].name}.{path}"
        found.append(Swept(where, owner, tuple(rest), name, domain))
    for one in found:
        for other in found:
            if one is not other and one.owner == other.owner and other.path[: len(one.path)] == one.path:
                raise InvalidField(
                    f"{other.name} is swept, and so is {one.name}, of which it is a part",
                    where="Sweep.over",
                    do="vary one of them",
                )
    found.sort(key=lambda each: (places[each.owner.key], each.path))
    names = [each.name for each in found]
    return [
        each if names.count(each.name) == 1 else Swept(each.where, each.owner, each.path, f"{each.name} {place}",
                                                       each.domain)
        for place, each in enumerate(found)
    ]  # fmt: skip


def _refuse_execution(owner: Stage, rest: Iterable[str], shown: str) -> None:
    node: Any = owner
    for part in rest:
        if isinstance(node, Specification):
            if type(node).is_execution(part):
                raise InvalidField(
                    f"{part} says how a stage runs, not what it makes: all trials would be one",
                    where=shown,
                    do="vary a field that the result depends on",
                )
            node = node.__dict__[part]
        else:
            node = node[int(part)] if isinstance(node, tuple) else node[part]


def judged_by(measured: Stage) -> dict[str, Stage]:
    """The rows by which trials are compared (key → stage), as they are measured: the held-out rows of training and
    what it makes of them; of a report, the rows it reads."""
    held = measured.__dict__.get("held_out")
    if isinstance(held, Stage):
        hidden = [each for each in measured.expand().values() if held in walk(each)]
        return {each.key: each for each in (held, *hidden)}
    if measured.kind == "report":
        return {each.key: each for each in inputs(measured) if each.kind == "rows"}
    return {}


def test_parts(rows: Iterable[Stage]) -> Iterator[View]:
    """Parts named `test` among rows, or that they are chosen from."""
    for stage in rows:
        above: Any = stage
        while isinstance(above, Stage):
            if isinstance(above, View) and above.part == "test":
                yield above
            above = above.__dict__.get("rows")
