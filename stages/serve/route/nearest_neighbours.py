"""Routing by the nearest known prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.serve.place import BASE
from graftline.stages.serve.route.route import Arrays, Route, folds
from graftline.stages.serve.route.tradeoff import roc_area
from graftline.stages.serve.route.tried import Outcomes
from graftline.stages.specification import Paper

if TYPE_CHECKING:
    import numpy as np

Measure = Callable[["np.ndarray", "np.ndarray"], float | None]
TRIED = (2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Neighbours that cross-validation chooses among."""


class NearestNeighbours(Route):
    """CARROT's k-nearest-neighbour router: a target's quality is its share of the k known prompts whose embeddings have
    the largest cosine with the request's. A target's share counts in units of how many prompts it has in all, so that
    one with many does not win by their number. Equally near prompts go by their order.

    With `tried`, a target's quality is the mean of its k nearest prompts that it was tried on, and so, with a k of its
    own, is the number of tokens it will write. Each target has its own ks: one target more changes nothing about the
    others.

    Args:
        rows: target → rows with prompts it should answer (at least one target); with `tried`, with its own answers.
        embedder: turns prompts into vectors.
        costs: target → cost of an answer, 0 to 1.
        mu: weight of the cost, 0 to 1.
        tried: the columns that say how good each answer was, and what its tokens cost.
        k: neighbours (None: 2 to 512, by the ROC area over 5 folds of whole groups, for tokens by R²; of equals the
            fewest).
        least: mean cosine with the neighbours (with `tried`: as many as the smallest k for quality), seen from the
            middle of all prompts, below which the request is like none of them and `base` answers (−1 to 1; None:
            never).

    Raises:
        InvalidField: `least` of targets that were tried, without what the base did.

    Property tested: mu = 0 picks the highest quality and mu = 1 the cheapest; the mean cost never rises with mu; the
    same table gives the same choice, in under 10 ms over 1,000 prompts; scikit-learn finds the same estimates.
    """

    method = "route.carrot"
    papers = (Paper("CARROT: A Cost Aware Rate Optimal Router"),)

    k: Annotated[int, Field(ge=1)] | None = None
    least: Annotated[float, Field(ge=-1, le=1)] | None = None

    def check(self) -> None:
        super().check()
        if self.tried is not None and self.least is not None and BASE not in self.rows:
            raise InvalidField(
                "the base is to answer what is like nothing known, and was not tried",
                where="NearestNeighbours.least",
                do=f"add rows for {BASE}, or drop it",
            )

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(sorted({*self.rows, *(() if self.least is None else (BASE,))}))

    def fit(
        self, vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        import numpy as np

        settings = self._settings()
        arrays: dict[str, np.ndarray] = {"vectors": vectors.astype(np.float32), "labels": labels.astype(np.int64)}
        settings["k"] = self.k or self._tuned(arrays, settings, groups)
        return arrays, settings

    def fit_tried(self, tried: Outcomes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        import numpy as np

        arrays = {"vectors": tried.vectors.astype(np.float32), "quality": tried.quality}
        ks = self._each_k(tried, tried.quality, roc_area)
        settings = {**self._settings(), "k": min(ks), "k_quality": ks}
        if self.tried is not None and self.tried.prices is not None:
            arrays["tokens"] = tried.tokens_out
            settings["k_tokens"] = self._each_k(tried, tried.tokens_out, _explained)
        return arrays, settings

    def _each_k(self, tried: Outcomes, values: np.ndarray, measure: Measure) -> list[int]:
        return [self.k] * len(self.targets) if self.k else _tuned(tried, values, measure)

    def _settings(self) -> dict[str, Any]:
        base = {} if self.least is None else {"base": self.targets.index(BASE)}
        return {"targets": len(self.targets), "least": self.least, **base}

    def _tuned(self, arrays: Arrays, settings: Mapping[str, Any], groups: np.ndarray) -> int:
        from sklearn.metrics import roc_auc_score

        vectors, labels = arrays["vectors"], arrays["labels"]
        areas: dict[int, list[float]] = {}
        for inside, outside in folds(groups):
            known = {"vectors": vectors[inside], "labels": labels[inside]}
            for k in (each for each in TRIED if each <= len(inside)):
                quality = self.quality(known, {**settings, "k": k, "least": None}, vectors[outside])
                for target in set(labels.tolist()):
                    truth = labels[outside] == target
                    if 0 < truth.sum() < len(truth):
                        areas.setdefault(k, []).append(float(roc_auc_score(truth, quality[:, target])))
        return _best(areas, len(labels))

    @classmethod
    def quality(cls, arrays: Arrays, settings: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
        import numpy as np

        near = vectors.astype(np.float32) @ arrays["vectors"].T
        order = np.argsort(-near, axis=1, kind="stable")
        nearest = order[:, : settings["k"]]
        if "labels" in arrays:
            labels, count = arrays["labels"], settings["targets"]
            sizes = np.maximum(np.bincount(labels, minlength=count), 1)
            votes = np.stack([np.bincount(labels[row], minlength=count) / sizes for row in nearest])
            quality = votes / votes.sum(1, keepdims=True)
        else:
            quality = _means(order, arrays["quality"], settings["k_quality"])
        if settings["least"] is not None:
            strange = np.take_along_axis(near, nearest, 1).mean(1) < settings["least"]
            quality[strange] = np.eye(settings["targets"])[settings["base"]]
        return quality

    @classmethod
    def tokens(cls, arrays: Arrays, settings: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
        import numpy as np

        order = np.argsort(-(vectors.astype(np.float32) @ arrays["vectors"].T), axis=1, kind="stable")
        return _means(order, arrays["tokens"], settings["k_tokens"])


def _means(order: np.ndarray, values: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """[prompts, targets]: the mean of the k nearest values that a target has.

    Args:
        order: [prompts, known prompts], the nearest first.
        values: [known prompts, targets], nan where there is none.
        ks: of each target.
    """
    import numpy as np

    return np.stack([_nearest(order, own, k).mean(1) for own, k in zip(values.T, ks, strict=True)], axis=1)


def _nearest(order: np.ndarray, values: np.ndarray, most: int) -> np.ndarray:
    """[prompts, most]: the nearest values that are there, nearest first."""
    import numpy as np

    known = ~np.isnan(values)
    found: np.ndarray = values[order[known[order]].reshape(len(order), known.sum())[:, :most]]
    return found


def _tuned(tried: Outcomes, values: np.ndarray, measure: Measure) -> list[int]:
    """Of each target the k whose means of the nearest come closest to its values, each fold of prompts by neighbours
    outside their groups.

    Args:
        values: [prompts, targets], nan where there is none.
        measure: (values, estimates) → larger for better ones, None where it cannot tell.
    """
    import numpy as np

    vectors, known = tried.vectors.astype(np.float32), ~np.isnan(values)
    measured: list[dict[int, list[float]]] = [{} for _ in values.T]
    for inside, outside in folds(tried.groups):
        order = np.argsort(-(vectors[outside] @ vectors[inside].T), axis=1, kind="stable")
        for target, found in enumerate(measured):
            asked = known[outside, target]
            sums = _nearest(order[asked], values[inside, target], max(TRIED)).cumsum(1)
            for k in (each for each in TRIED if each <= known[inside, target].sum()):
                if (good := measure(values[outside, target][asked], sums[:, k - 1] / k)) is not None:
                    found.setdefault(k, []).append(good)
    return [_best(found, int(count)) for found, count in zip(measured, known.sum(0), strict=True)]


def _best(measured: Mapping[int, list[float]], most: int) -> int:
    """The k with the largest mean, of equals the smallest; of none the smallest there is."""
    if not measured:
        return min(TRIED[0], most)
    return min(measured, key=lambda k: (-round(sum(measured[k]) / len(measured[k]), 6), k))


def _explained(values: np.ndarray, estimates: np.ndarray) -> float | None:
    """R²; None where there is nothing to explain."""
    from sklearn.metrics import r2_score

    return float(r2_score(values, estimates)) if len(values) > 1 and values.std() > 0 else None
