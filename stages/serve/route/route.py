"""The slot: which of a service's models answers a request that names none."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.errors import EngineFailed, InvalidField, NothingKept
from graftline.stages.lm.embedder import Embedder
from graftline.stages.read.jsonl import Jsonl
from graftline.stages.rows import Columns, digest
from graftline.stages.score.embedding import COLUMN, embedded
from graftline.stages.serve.place import BASE
from graftline.stages.serve.route import tradeoff
from graftline.stages.serve.route.price import counted, money
from graftline.stages.serve.route.tried import Outcomes, Tried
from graftline.stages.specification import Added
from graftline.stages.stage import Context, EmbeddingModel, Rows, Stage

if TYPE_CHECKING:
    import numpy as np

    from graftline.stages.artefact import Artefact

FOLDS = 5
Arrays = Mapping[str, "np.ndarray"]


class Route(Stage):
    """Estimates how well each target would answer a prompt, and picks one. Makes a report, with the fitted router
    beside it, both by 5 folds with groups kept together: how often it picks the target whose rows a prompt came from;
    of targets that were `tried`, the mean cost and quality of its choices as mu goes from 0 to 1, beside those of each
    target alone. A mu chosen by that curve is to be judged on other rows; what routing itself takes is in no cost.

    A target is what a service answers to: an adapter's or model's id, or `base`. Of several the one with the largest
    (1 − mu)·quality − mu·cost is picked; of equals the cheapest, then the best, then the first by id. One's own router
    overrides `fit` and `quality`, or `fit_tried`, `quality` and `tokens`.

    Args:
        rows: target → rows with prompts it should answer; with `tried`, rows with its own answers.
        embedder: turns prompts (what the user says in them) into vectors.
        costs: target → cost of an answer, 0 to 1, on one scale of yours: it is not rescaled, so that a new target
            changes no choice between the others. What is not named costs 0.
        mu: 0 (quality alone) to 1 (cost alone); a request may ask for another.
        tried: where rows say how good a target's answers were (None: they are prompts it should answer). Quality is
            then the probability of a right answer, and, with prices, a request's cost is estimated.

    Raises:
        InvalidField: costs or prices of what is no target; prices that leave a target out, or beside `costs`.
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
    tried: Annotated[Tried | None, Added] = None

    def check(self) -> None:
        where, prices = type(self).__name__, None if self.tried is None else self.tried.prices
        for field, given in (("costs", self.costs), ("tried.prices", prices)):
            if unknown := sorted(set(given or ()) - set(self.targets)):
                raise InvalidField(
                    f"there is no target {unknown[0]!r}", where=f"{where}.{field}", do=f"use {', '.join(self.targets)}"
                )
        if self.tried is not None and type(self).fit_tried is Route.fit_tried:
            raise InvalidField("it does not learn from what was tried", where=f"{where}.tried", do="write `fit_tried`")
        if prices is None:
            return
        if self.costs is not None:
            raise InvalidField("there are prices, too", where=f"{where}.costs", do="drop one of them")
        if missing := sorted(set(self.targets) - set(prices)):
            raise InvalidField(f"there is none for {missing[0]}", where=f"{where}.tried.prices", do="give it one")

    @property
    def targets(self) -> tuple[str, ...]:
        """What it chooses among, by id."""
        return tuple(sorted(self.rows))

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"rows": {"messages": "messages", **({} if self.tried is None else self.tried.columns)}}

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

    def fit_tried(self, tried: Outcomes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """`fit`, of what was tried: its vectors are centred and of length 1."""
        raise NotImplementedError(f"{type(self).__name__}.fit_tried")

    @classmethod
    def quality(cls, arrays: Arrays, settings: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
        """[prompts, targets]: the estimated probability that a target answers well."""
        raise NotImplementedError(f"{cls.__name__}.quality")

    @classmethod
    def tokens(cls, arrays: Arrays, settings: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
        """[prompts, targets]: the tokens each target is expected to write; asked where there are prices."""
        raise NotImplementedError(f"{cls.__name__}.tokens")

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        import numpy as np
        from safetensors.numpy import save_file

        rows = {target: inputs.get(_embedded(target), own) for target, own in sorted(inputs["rows"].items())}
        made = self._from_prompts(rows) if self.tried is None else self._from_tried(self.tried, rows)
        save_file({name: np.ascontiguousarray(each) for name, each in made.arrays.items()}, out / "router.safetensors")
        about = {
            "module": type(self).__module__,
            "class": type(self).__qualname__,
            "targets": list(self.targets),
            "costs": self._costs.tolist(),
            "mu": self.mu,
            "settings": made.settings,
            **({} if made.prices is None else {"prices": made.prices}),
        }
        (out / "router.json").write_text(f"{json.dumps(about, indent=2, sort_keys=True)}\n", encoding="utf-8")
        (out / "report.json").write_text(json.dumps(made.report, indent=1), encoding="utf-8")
        arrays = {name: each.tobytes().hex() for name, each in sorted(made.arrays.items())}
        return {**made.metrics, "_digest": digest([about, arrays])}

    def _from_prompts(self, rows: Mapping[str, Artefact]) -> _Made:
        """The router that tells the targets' rows apart."""
        import numpy as np

        found, labels, groups = [], [], []
        for target, own in rows.items():
            for row in own.rows(["id", "group", COLUMN]).to_pylist():
                if row[COLUMN] is not None:  # the user says nothing in it
                    found.append(row[COLUMN])
                    labels.append(self.targets.index(target))
                    groups.append(row["group"] or row["id"])
        if missing := sorted(set(self.rows) - {self.targets[label] for label in labels}):
            raise NothingKept(f"there are no rows for {missing[0]}", where=self.name, do="give it some")
        vectors, numbers = np.asarray(found, np.float32), _numbers(groups)
        known = np.asarray(labels)
        report = self.report(vectors, known, numbers)
        cells = report["metrics"]["routed_right"]
        metrics = {
            "routed_right": cells["all"]["value"],
            **{f"routed_right/{target}": cell["value"] for target, cell in cells.items()},
            "rows": len(labels),
        }
        return _Made(*self.fitted(vectors, known, numbers), None, report, metrics)

    def _from_tried(self, tried: Tried, rows: Mapping[str, Artefact]) -> _Made:
        """The router that foresees how good an answer would be, and what it would cost."""
        import numpy as np

        outcomes = tried.read(rows, self.targets)
        prices, paid = None, np.where(np.isnan(outcomes.quality), np.nan, self._costs)
        if tried.prices is not None:
            prices, paid = tried.paid(outcomes, self.targets)
        quality, costs = (np.full_like(outcomes.quality, np.nan) for _ in range(2))
        for inside, outside in folds(outcomes.groups):
            known, asked = outcomes.at(inside), outcomes.at(outside)
            if not np.isnan(known.quality if prices is None else known.tokens_out).all(0).any():
                arrays, settings = self.fitted_tried(known)
                seen = centred(asked.vectors, arrays["centre"])
                quality[outside] = self.quality(arrays, settings, seen)
                costs[outside] = _costs(type(self), arrays, settings, seen, asked.tokens_in, self._costs, prices)
        found = tradeoff.report(self.targets, outcomes.groups, self.mu, outcomes.quality, paid, quality, costs)
        report = {"targets": list(self.targets), "tradeoff": {**found, "prices": prices}}
        metrics: dict[str, Any] = {"prompts": len(outcomes.groups), "compared": found["prompts"]}
        if found["prompts"]:
            metrics |= {name: found["own"][name] for name in ("quality", "cost")}
            metrics |= {"area": found["area"]["routed"], "above_line": found["above_line"]["value"]}
        return _Made(*self.fitted_tried(outcomes), prices, report, metrics)

    @property
    def _costs(self) -> np.ndarray:
        """[targets]: the constant ones."""
        import numpy as np

        return np.asarray([(self.costs or {}).get(target, 0.0) for target in self.targets])

    def fitted_tried(self, tried: Outcomes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """`fit_tried` on centred vectors; the centre is kept."""
        centre = tried.vectors.mean(0)
        arrays, settings = self.fit_tried(replace(tried, vectors=centred(tried.vectors, centre)))
        return {**arrays, "centre": centre}, settings

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
class _Made:
    """A fitted router and what is told of it."""

    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    prices: Mapping[str, Any] | None
    report: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """What a router says of one prompt: the target, and of each its quality and its cost as they were weighed."""

    target: str
    quality: Mapping[str, float]
    cost: Mapping[str, float]


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
        self.costs, self.prices = np.asarray(about["costs"]), about.get("prices")

    def choose(self, vector: np.ndarray, mu: float | None = None, text: str = "") -> Choice:
        """The target for a prompt: its vector, as an embedder gives it, and its text, where that is priced."""
        import numpy as np

        seen, read = centred(vector[None], self.arrays["centre"]), np.array([float(counted(text))])
        quality = self.kind.quality(self.arrays, self.settings, seen)[0]
        costs = _costs(self.kind, self.arrays, self.settings, seen, read, self.costs, self.prices)[0]
        at = choose(quality, costs, self.mu if mu is None else mu)
        found = (dict(zip(self.targets, map(float, each), strict=True)) for each in (quality, costs))
        return Choice(self.targets[at], *found)


def choose(quality: np.ndarray, costs: np.ndarray, mu: float) -> int:
    """The place of the target with the largest (1 − mu)·quality − mu·cost (`tradeoff.chosen`)."""
    return int(tradeoff.chosen(quality, costs, mu))


def _costs(
    kind: type[Route], arrays: Arrays, settings: Mapping[str, Any], vectors: np.ndarray, tokens_in: np.ndarray,
    constant: np.ndarray, prices: Mapping[str, Any] | None,
) -> np.ndarray:  # fmt: skip
    """[prompts, targets]: the costs as the rule weighs them, estimated where there are prices."""
    import numpy as np

    if prices is None:
        return np.tile(constant, (len(vectors), 1))
    price_in, price_out = np.asarray(prices["input"]), np.asarray(prices["output"])
    return money(price_in, price_out, tokens_in, kind.tokens(arrays, settings, vectors)) / prices["dearest"]


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
