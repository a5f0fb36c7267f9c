"""The slot: which of a service's models answers a request that names none."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.errors import EngineFailed, InvalidField, NothingKept
from graftline.stages.lm.embedder import Embedder
from graftline.stages.read.jsonl import Jsonl
from graftline.stages.rows import Columns, digest
from graftline.stages.score.embedding import COLUMN, embedded
from graftline.stages.serve.place import BASE
from graftline.stages.stage import Context, EmbeddingModel, Rows, Stage

if TYPE_CHECKING:
    import numpy as np

FOLDS = 5
Arrays = Mapping[str, "np.ndarray"]


class Route(Stage):
    """Estimates how well each target would answer a prompt, and picks one. Makes a report: how often it picks the
    target whose rows a prompt came from (5 folds, groups kept together), with the fitted router beside it.

    A target is what a service answers to: an adapter's or model's id, or `base`. Of several the one with the largest
    (1 − mu)·quality − mu·cost is picked, ties by id. One's own router overrides `fit` and `quality`.

    Args:
        rows: target → rows with prompts it should answer.
        embedder: turns prompts (what the user says in them) into vectors.
        costs: target → cost of an answer, 0 to 1, on one scale of yours: it is not rescaled, so that a new target
            changes no choice between the others. What is not named costs 0.
        mu: 0 (quality alone) to 1 (cost alone); a request may ask for another.
    """

    makes = "report"
    version = 2  # the report has routes
    origin = "the slot of Service: what a router is derived from, no method"
    specimen: ClassVar[Mapping[str, Any]] = {
        "rows": {BASE: Jsonl(path="rows.jsonl", prompt="{text}", answer="{queue}")},
        "costs": {BASE: 0.5},
    }

    rows: Annotated[Mapping[str, Rows], Field(min_length=1)]
    embedder: EmbeddingModel = Embedder("minilm-l6")
    costs: Mapping[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    mu: Annotated[float, Field(ge=0, le=1)] = 0.0

    def check(self) -> None:
        if unknown := sorted(set(self.costs or ()) - set(self.targets)):
            raise InvalidField(
                f"there is no target {unknown[0]!r}",
                where=f"{type(self).__name__}.costs",
                do=f"use {', '.join(self.targets)}",
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """What it chooses among, by id."""
        return tuple(sorted(self.rows))

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"rows": {"messages": "messages"}}

    def expand(self) -> Mapping[str, Stage]:
        return {
            _embedded(target): stage
            for target, rows in self.rows.items()
            for stage in embedded(rows, self.embedder).values()
        }

    def fit(
        self, vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What was learned: arrays, and plain settings.

        Args:
            vectors: [rows, width], centred and of length 1.
            labels: [rows], each row's target as its place in `targets`.
            groups: [rows], numbers; rows of one group count as one source.
        """
        raise NotImplementedError(f"{type(self).__name__}.fit")

    @classmethod
    def quality(cls, arrays: Arrays, settings: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
        """[prompts, targets]: the estimated probability that a target answers well."""
        raise NotImplementedError(f"{cls.__name__}.quality")

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        import numpy as np
        from safetensors.numpy import save_file

        found, labels, groups = [], [], []
        for target, own in sorted(inputs["rows"].items()):
            for row in inputs.get(_embedded(target), own).rows(["id", "group", COLUMN]).to_pylist():
                if row[COLUMN] is not None:  # the user says nothing in it
                    found.append(row[COLUMN])
                    labels.append(self.targets.index(target))
                    groups.append(row["group"] or row["id"])
        if missing := sorted(set(self.rows) - {self.targets[label] for label in labels}):
            raise NothingKept(f"there are no rows for {missing[0]}", where=self.name, do="give it some")
        vectors, numbers = np.asarray(found, np.float32), _numbers(groups)
        known = np.asarray(labels)
        arrays, settings = self.fitted(vectors, known, numbers)
        save_file({name: np.ascontiguousarray(each) for name, each in arrays.items()}, out / "router.safetensors")
        about = {
            "module": type(self).__module__,
            "class": type(self).__qualname__,
            "targets": list(self.targets),
            "costs": [(self.costs or {}).get(target, 0.0) for target in self.targets],
            "mu": self.mu,
            "settings": settings,
        }
        (out / "router.json").write_text(f"{json.dumps(about, indent=2, sort_keys=True)}\n", encoding="utf-8")
        report = self.report(vectors, known, numbers)
        (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        cells = report["metrics"]["routed_right"]
        return {
            "routed_right": cells["all"]["value"],
            **{f"routed_right/{target}": cell["value"] for target, cell in cells.items()},
            "rows": len(labels),
            "_digest": digest([about, {name: each.tobytes().hex() for name, each in sorted(arrays.items())}]),
        }

    def fitted(
        self, vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """`fit` on centred vectors; the centre is kept: language models' states all lie to one side of 0."""
        centre = vectors.mean(0)
        arrays, settings = self.fit(centred(vectors, centre), labels, groups)
        return {**arrays, "centre": centre}, settings

    def report(self, vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
        """How often the router picks the row's own target: each fold by one that did not see its groups."""
        import numpy as np

        from graftline.stages.evaluate import interval

        picked = np.full(len(labels), -1)
        for inside, outside in folds(groups):
            if len(set(labels[inside])) == len(set(labels)):
                arrays, settings = self.fitted(vectors[inside], labels[inside], groups[inside])
                free = np.zeros(len(self.targets))
                quality = self.quality(arrays, settings, centred(vectors[outside], arrays["centre"]))
                picked[outside] = [choose(row, free, 0.0) for row in quality]
        right = picked == labels
        cells: dict[str, Any] = {}
        for name, mine in (("all", right >= 0), *((each, labels == at) for at, each in enumerate(self.targets))):
            if mine.any():
                cells[name] = interval.share(right[mine].tolist(), groups[mine].tolist(), 0)
        routes: dict[str, dict[str, int]] = {}
        for truth, pick in zip(labels.tolist(), picked.tolist(), strict=True):
            counts = routes.setdefault(self.targets[truth], {})
            name = self.targets[pick] if pick >= 0 else "(too few groups)"
            counts[name] = counts.get(name, 0) + 1
        return {
            "columns": list(cells),
            "metrics": {"routed_right": cells},
            "targets": list(self.targets),
            "routes": routes,
            "intervals": f"95 %, over {FOLDS} folds of whole groups",
        }


@dataclass(frozen=True)
class Choice:
    """What a router says of one prompt."""

    target: str
    quality: Mapping[str, float]


class Fitted:
    """A router as a service holds it, read from a router's folder.

    Raises:
        EngineFailed: its class cannot be imported here.
    """

    def __init__(self, folder: Path) -> None:
        import numpy as np
        from safetensors.numpy import load_file

        about = json.loads((folder / "router.json").read_text(encoding="utf-8"))
        try:
            self.kind: type[Route] = getattr(importlib.import_module(about["module"]), about["class"])
        except (ImportError, AttributeError) as error:
            raise EngineFailed(
                f"the router's class cannot be imported: {error}", where=about["module"], do="install it on the cluster"
            ) from error
        self.arrays, self.settings = load_file(folder / "router.safetensors"), about["settings"]
        self.targets, self.mu = tuple(about["targets"]), float(about["mu"])
        self.costs = np.asarray(about["costs"])

    def choose(self, vector: np.ndarray, mu: float | None = None) -> Choice:
        """The target for a prompt's vector, as an embedder gives it."""
        quality = self.kind.quality(self.arrays, self.settings, centred(vector[None], self.arrays["centre"]))[0]
        at = choose(quality, self.costs, self.mu if mu is None else mu)
        return Choice(self.targets[at], dict(zip(self.targets, map(float, quality), strict=True)))


def choose(quality: np.ndarray, costs: np.ndarray, mu: float) -> int:
    """The place of the target with the largest (1 − mu)·quality − mu·cost; the first of equals."""
    import numpy as np

    return int(np.argmax((1 - mu) * quality - mu * costs))


def centred(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Vectors seen from the centre, of length 1 (0 at the centre itself)."""
    import numpy as np

    moved = vectors - centre
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return moved / np.where(length > 0, length, 1)


def folds(groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows to try, `FOLDS` times (fewer where there are fewer groups), groups kept together."""
    import numpy as np
    from sklearn.model_selection import GroupKFold

    count = min(FOLDS, len(set(groups.tolist())))
    if count > 1:
        yield from GroupKFold(count).split(np.zeros(len(groups)), groups=groups)


def _embedded(target: str) -> str:
    """The name of the hidden stage with the vectors of a target's rows."""
    return f"embedded {target}"


def _numbers(groups: Sequence[str]) -> np.ndarray:
    import numpy as np

    from graftline.stages.evaluate.interval import clusters

    return np.asarray(clusters(groups))
