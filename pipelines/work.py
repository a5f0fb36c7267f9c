"""One stage's work order, as it travels to a worker, and how what it made is committed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftline.pipelines.account import Account
from graftline.pipelines.artefacts import Artefacts, Identity, files_digest
from graftline.pipelines.board import Board
from graftline.pipelines.sources import source_digest, versions
from graftline.pipelines.store import Store
from graftline.stages.artefact import Artefact
from graftline.stages.errors import UnknownStage
from graftline.stages.stage import Resources, Stage, View

if TYPE_CHECKING:
    from graftline.pipelines.parts import Parts

LOG = "log.jsonl"


@dataclass(frozen=True)
class Work:
    """What a worker needs to make one stage.

    Args:
        stage: the stage; of a chain, its last one.
        chain: mappers and scorers that run in the same tasks, the stage itself last.
        fingerprints: of the chain's stages, by key.
        identity: of the artefact to make.
        inputs: opened artefacts by the key of the input stage, and the bases of adapters among them.
        store: where to.
        base: folder from which relative paths count.
        resources: what the task was given, `cpus` and `threads` filled in.
        workers: resources of each engine of a rounds stage.
        ledger: the ledger's name in the store; "" without one.
        generation: how often the stage was retried for these inputs.
        board: where progress is told and other stages are asked for.
        pinned: name → identity of what the plan found outside, such as a model's commit.
        on_ray: whether Ray is there to start engines as actors.
        watched: the metric after which it asks whether it goes on ("": it does).
    """

    stage: Stage
    chain: tuple[Stage, ...]
    fingerprints: Mapping[str, str]
    identity: Identity
    inputs: Mapping[str, Artefact]
    store: Store
    base: str
    resources: Resources
    board: Board
    workers: Resources = field(default_factory=Resources)
    ledger: str = ""
    generation: int = 0
    pinned: Mapping[str, str] = field(default_factory=dict)
    on_ray: bool = False
    watched: str = ""

    def opened(self, stage: Stage) -> Artefact:
        """The artefact of an input."""
        if stage.key in self.inputs:
            return self.inputs[stage.key]
        if isinstance(stage, View) and stage.of.key in self.inputs:
            return self.inputs[stage.of.key].view(stage.part)
        raise UnknownStage(
            f"{stage!r} is no input of {self.stage.name}",
            where=self.stage.name,
            do="hold it in a field, or name it in expand()",
        )

    def arguments(self, stage: Stage) -> dict[str, Any]:
        """Field → opened artefacts in containers shaped like the field's, of the fields that hold stages (patterns
        apart); and what `expand()` names."""
        held = {name: value for name, value in stage.__dict__.items() if not stage.is_template(name)}
        found = {name: self._mapped(value) for name, value in held.items() if _holds(value)}
        return {**found, **{name: self.opened(each) for name, each in stage.expand().items()}}

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Stage):
            return self.opened(value)
        if isinstance(value, tuple):
            return tuple(self._mapped(item) for item in value)
        if isinstance(value, Mapping):
            return {key: self._mapped(item) for key, item in value.items()}
        return value


def _holds(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_holds(item) for item in value)
    if isinstance(value, Mapping):
        return any(_holds(item) for item in value.values())
    return isinstance(value, Stage)


@dataclass
class Product:
    """What a worker made, before it is committed.

    Args:
        files: entries of the files, for the manifest.
        digest: of the content.
        account: of its rows; None where it makes none.
        views: part → rows and digest.
        metrics: what the stage measured.
        calls: of models: model, requests, tokens_in, tokens_out, tokens_scored, tokens_trained, money.
        chain: accounts of the stages that ran in the same tasks before it.
        reproducible: whether making it again gives the same digest.
        why: why not.
        began: seconds since the epoch.
    """

    files: dict[str, Any]
    digest: str
    account: Account | None = None
    views: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, Any] = field(default_factory=dict)
    chain: list[dict[str, Any]] = field(default_factory=list)
    reproducible: bool = True
    why: str = ""
    began: float = field(default_factory=time.time)


def commit(work: Work, attempt: str, product: Product) -> Artefact:
    """Checks the account and commits an attempt.

    Raises:
        TooManyFailed, NothingKept, RunError: the account is refused; nothing is committed.
    """
    if product.account is not None:
        product.account.check(work.stage.name, getattr(work.stage, "max_failed", 1.0))
    manifest = {
        "schema": 1,
        "stage": work.stage.name,
        "class": work.stage.qualified,
        "kind": work.stage.kind,
        "version": work.stage.version,
        "fingerprint": work.identity.fingerprint,
        "parents": [{"fingerprint": one, "digest": other} for one, other in work.identity.parents],
        "digest": product.digest,
        "generation": work.generation,
        "rows": product.account.to_dict() if product.account is not None else None,
        "views": product.views,
        "chain": product.chain,
        "calls": product.calls,
        "metrics": plain(product.metrics),
        "seconds": round(time.time() - product.began, 3),
        "threads": work.resources.threads,
        "versions": versions(),
        "source_digest": work.identity.source or source_digest(type(work.stage)),
        "ledger": work.ledger,
        "files": dict(sorted(product.files.items())),
        "reproducible": product.reproducible,
        "why": product.why,
    }
    return Artefacts(work.store).commit(work.identity, attempt, manifest)


def rows_product(work: Work, parts: Parts, account: Account, began: float) -> Product:
    """The product of a stage that makes rows: an outcome without a row is one file without rows."""
    from graftline.pipelines.parts import REASON
    from graftline.stages.rows import digest, rows_digest, schema

    columns, views = work.stage.columns, {}
    if work.stage.views:
        for part in work.stage.views:
            table = parts.read(f"rows/{part}", columns)
            if not table.num_rows:
                parts.write(f"rows/{part}", schema(columns).empty_table())
            views[part] = {"rows": table.num_rows, "digest": rows_digest(table)}
        found = digest({part: view["digest"] for part, view in views.items()})
    else:
        found = rows_digest(parts.read("rows", columns))
    for outcome in ("filtered", "failed"):
        if not any(name.startswith(f"{outcome}/") for name in parts.files):
            parts.write(outcome, schema({**columns, **REASON}).empty_table())
    return Product(parts.files, found, account, views, began=began)


def made_product(work: Work, files: dict[str, Any], metrics: dict[str, Any], began: float) -> Product:
    """The product of a stage with a `make`. Its metrics may speak to us: `_digest` (of the content), `_volatile`
    (names of files with timings in them), `_calls` (what it asked models for, beside an engine), `_reproducible` and
    `_why`."""
    said = {name: metrics[name] for name in metrics if name.startswith("_")}
    told = {name: value for name, value in metrics.items() if not name.startswith("_")}
    found = said.get("_digest") or (work.stage.kind == "adapter" and told.get("adapter_digest"))
    return Product(
        files,
        str(found or files_digest(files, [LOG, *said.get("_volatile", ())])),
        metrics=told,
        calls=dict(said.get("_calls", {})),
        reproducible=bool(said.get("_reproducible", True)),
        why=str(said.get("_why", "")),
        began=began,
    )


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of other libraries as Python's, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(value.item()) if hasattr(value, "item") else str(value)


def input_rows(work: Work) -> Iterator[Artefact]:
    """The opened rows inputs of a stage, each once."""
    seen = set()
    for artefact in work.inputs.values():
        if artefact.kind == "rows" and (artefact.path, artefact.part) not in seen:
            seen.add((artefact.path, artefact.part))
            yield artefact
