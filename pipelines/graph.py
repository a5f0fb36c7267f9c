"""A pipeline's graph as it is run: every stage once, what each reads, what is fused into what, what is in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graftline.pipelines.artefacts import Artefacts, Identity
from graftline.pipelines.sources import is_shipped, source_digest
from graftline.stages.artefact import Artefact
from graftline.stages.errors import InvalidField
from graftline.stages.lm.reference import pristine_base
from graftline.stages.rows import digest
from graftline.stages.shapes import Mapper, Scorer
from graftline.stages.specification import Pins, Specification, specifications
from graftline.stages.stage import Stage, View
from graftline.stages.value_graph import fingerprints, inputs, walk

RESULT = "result"
"""The name of the only stage of a pipeline that returns one."""


def roots_of(pipeline: Any) -> dict[str, Stage]:
    """Name → stage of what a pipeline is: a stage, a mapping of them, or a function that returns one of the two.

    Raises:
        InvalidField: it is something else.
    """
    found = pipeline() if callable(pipeline) and not isinstance(pipeline, type) else pipeline
    if isinstance(found, Stage):
        found = {RESULT: found}
    if not isinstance(found, Mapping) or not found or not all(isinstance(each, Stage) for each in found.values()):
        raise InvalidField(
            f"a pipeline is {type(found).__name__}",
            where="pipeline",
            do="return a stage, or a mapping of names to stages",
        )
    for name, stage in found.items():
        if stage.views:
            parts = ", ".join(f".{part}" for part in stage.views)
            raise InvalidField(f"{stage.name} makes several parts", where=f"pipeline: {name}", do=f"name one: {parts}")
    return dict(found)


@dataclass
class Graph:
    """All stages under some roots.

    Args:
        roots: name → stage.
        stages: by key, each after all it reads; views, hidden stages (`expand()`) and fused ones included.
        reads: key → the stages it reads directly.
        bases: key → models it needs because one of its inputs is an adapter of them.
        fused: key → the mapper or scorer in whose tasks it runs.
        fingerprints: of every specification, by key.
    """

    roots: Mapping[str, Stage]
    stages: dict[str, Stage] = field(default_factory=dict)
    reads: dict[str, list[Stage]] = field(default_factory=dict)
    bases: dict[str, list[Stage]] = field(default_factory=dict)
    fused: dict[str, Stage] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, roots: Mapping[str, Stage]) -> Graph:
        """The graph, without fingerprints."""
        graph = cls(roots)
        waiting: list[tuple[Stage, bool]] = [(stage, False) for stage in reversed(list(roots.values()))]
        while waiting:
            stage, ready = waiting.pop()
            if stage.key in graph.stages:
                continue
            if ready:
                graph.stages[stage.key] = stage
                continue
            reads = graph.reads.setdefault(stage.key, inputs(stage))
            bases = [pristine_base(each) for each in reads if each.kind == "adapter"]
            graph.bases[stage.key] = [each for each in dict.fromkeys(bases) if each not in reads]
            waiting.append((stage, True))
            waiting += [(each, False) for each in reversed([*reads, *graph.bases[stage.key]])]
        graph._fuse()
        return graph

    def _fuse(self) -> None:
        """A mapper or scorer that calls no model runs in its consumer's tasks, where that is one mapper or scorer and
        nobody else reads its rows."""
        readers: dict[str, list[Stage]] = {}
        for stage in self.stages.values():
            for each in self.reads[stage.key]:
                readers.setdefault(each.key, []).append(stage)
        wanted = {stage.key for stage in self.roots.values()}
        for stage in self.stages.values():
            if not isinstance(stage, (Mapper, Scorer)) or stage.calls_model or stage.key in wanted:
                continue
            match readers.get(stage.key, []):
                case [Mapper() | Scorer() as reader] if reader.rows == stage and _holds_once(reader, stage):
                    self.fused[stage.key] = reader

    def fingerprinted(self, pins: Pins) -> Graph:
        """The same, with fingerprints: the outside world is looked at."""
        self.fingerprints = fingerprints(list(self.stages.values()), pins)
        return self

    def fingerprint(self, stage: Stage) -> str:
        return self.fingerprints[stage.key]


def _holds_once(reader: Stage, stage: Stage) -> bool:
    """Whether a stage reads another through its field `rows` alone."""
    others = [value for name, value in reader.__dict__.items() if name != "rows" and isinstance(value, Stage)]
    return stage not in others and stage not in reader.expand().values()


def _own_code(stage: Stage) -> list[type[Specification]]:
    """The classes of a stage, of its plugs and of what it has variations made of (not of the stages it reads) that
    Graftline does not ship: their `version` does not speak for their code."""
    found: dict[type[Specification], None] = {}
    waiting: list[Specification] = [stage]
    while waiting:
        each = waiting.pop()
        if not is_shipped(type(each)):
            found[type(each)] = None
        waiting += [child for child in reversed(each.children()) if not isinstance(child, Stage)]
    patterns = [
        each for name, value in stage.__dict__.items() if stage.is_template(name) for each in specifications(value)
    ]
    found.update((type(each), None) for each in walk(*patterns) if not is_shipped(type(each)))
    return list(found)


class Known:
    """The artefacts found or made so far, by fingerprint."""

    def __init__(self, artefacts: Artefacts) -> None:
        self.artefacts = artefacts
        self.found: dict[str, Artefact] = {}

    def get(self, graph: Graph, stage: Stage) -> Artefact | None:
        """A stage's artefact; of a view, its part."""
        if isinstance(stage, View):
            whole = self.found.get(graph.fingerprint(stage.of))
            return whole.view(stage.part) if whole is not None else None
        return self.found.get(graph.fingerprint(stage))

    def chain(self, graph: Graph, stage: Stage) -> list[Stage]:
        """The stages that run in one stage's tasks, itself last: those fused into it and not in the store."""
        chain = [stage]
        while isinstance(chain[-1], (Mapper, Scorer)):
            before = chain[-1].rows
            if before.key not in graph.fused or self.get(graph, before) is not None:
                break
            chain.append(before)
        return chain[::-1]

    def outside(self, graph: Graph, chain: list[Stage]) -> list[Stage]:
        """What a chain reads from outside itself."""
        inside = {stage.key for stage in chain}
        return list(
            {each.key: each for stage in chain for each in graph.reads[stage.key] if each.key not in inside}.values()
        )

    def identity(self, graph: Graph, chain: list[Stage]) -> Identity | None:
        """The identity of a chain's artefact; None while an input is not known."""
        parents = []
        for each in self.outside(graph, chain):
            opened = self.get(graph, each)
            if opened is None:
                return None
            parents.append((graph.fingerprint(each), opened.digest))
        own = [source_digest(kind) for stage in chain for kind in _own_code(stage)]
        source = "" if not own else own[0] if len(own) == 1 else digest(own)
        last = chain[-1]
        return Identity(type(last).__name__, graph.fingerprint(last), tuple(parents), source)

    def any(self, graph: Graph, stage: Stage) -> bool:
        """Whether there is an artefact of this fingerprint, for whatever inputs."""
        return self.artefacts.any(Identity(type(stage).__name__, graph.fingerprint(stage)))

    def look(self, graph: Graph, stage: Stage) -> Artefact | None:
        """A stage's artefact, known already or in the store now: made from its input, or as the end of a chain."""
        opened = self.get(graph, stage)
        if opened is not None or isinstance(stage, View):
            return opened
        if not self.any(graph, stage):
            return None
        whole = self.chain(graph, stage)
        for chain in [whole] if len(whole) == 1 else [[stage], whole]:
            identity = self.identity(graph, chain)
            if identity is not None and (found := self.artefacts.find(identity)) is not None:
                self.found[graph.fingerprint(stage)] = found
                return found
        return None
