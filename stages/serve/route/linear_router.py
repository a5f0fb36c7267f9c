"""Routing by a linear classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.read.jsonl import Jsonl
from graftline.stages.serve.route.route import Arrays, Route
from graftline.stages.serve.route.tried import Outcomes
from graftline.stages.specification import Paper

if TYPE_CHECKING:
    import numpy as np


class LinearRouter(Route):
    """CARROT's linear router: a target's quality is its probability under a logistic regression (softmax over the
    targets, L2 penalty) on the prompt's embedding. Targets count alike however many rows they have. Quicker than
    neighbours, and blind to what lies between clusters.

    With `tried`, each target has a logistic regression of its own on whether its answers were right (of a quality
    between 0 and 1, both, by that share; where all or none were, that share by Laplace's rule), and a ridge regression
    on how many tokens it wrote, never fewer than none.

    Args:
        rows: target → rows with prompts it should answer (at least two targets); with `tried`, with its own answers.
        embedder: turns prompts into vectors.
        costs: target → cost of an answer, 0 to 1.
        mu: weight of the cost, 0 to 1.
        tried: the columns that say how good each answer was, and what its tokens cost.
        strength: inverse of the penalty; larger fits closer.

    Property tested: separable clusters are told apart; probabilities and expected tokens are scikit-learn's own, and
    those of rows told apart sum to 1.
    """

    method = "route.carrot_linear"
    papers = (Paper("CARROT: A Cost Aware Rate Optimal Router"),)

    specimen: ClassVar[Mapping[str, Any]] = {
        **Route.specimen,
        "rows": {**Route.specimen["rows"], "score": Jsonl(path="rows.jsonl", prompt="{text}", answer="{score}")},
    }

    strength: Annotated[float, Field(gt=0)] = 10.0

    def check(self) -> None:
        super().check()
        if len(self.rows) < 2:
            raise InvalidField(
                "one target leaves nothing to tell apart",
                where="LinearRouter.rows",
                do="add rows for another (`base`), or use NearestNeighbours(least=...)",
            )

    def fit(
        self, vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        found = LogisticRegression(C=self.strength, class_weight="balanced", max_iter=1000).fit(vectors, labels)
        slopes, offsets = found.coef_, found.intercept_
        if len(slopes) == 1:  # of two classes scikit-learn keeps the second alone
            slopes, offsets = np.vstack([-slopes, slopes]) / 2, np.concatenate([-offsets, offsets]) / 2
        return {"slopes": slopes.astype(np.float64), "offsets": offsets.astype(np.float64)}, {}

    def fit_tried(self, tried: Outcomes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        import numpy as np

        arrays: dict[str, np.ndarray] = {}
        lines = [self._logistic(*_known(tried.vectors, own)) for own in tried.quality.T]
        arrays["slopes"], arrays["offsets"] = np.stack([slope for slope, _ in lines]), np.array([at for _, at in lines])
        if self.tried is not None and self.tried.prices is not None:
            lines = [self._ridge(*_known(tried.vectors, own)) for own in tried.tokens_out.T]
            arrays["token_slopes"] = np.stack([slope for slope, _ in lines])
            arrays["token_offsets"] = np.array([at for _, at in lines])
        return arrays, {"tried": True}

    def _logistic(self, vectors: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, float]:
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        right, count = quality.sum(), len(quality)
        if not 0 < right < count:
            return np.zeros(vectors.shape[1]), float(np.log((right + 1) / (count - right + 1)))
        weights = np.concatenate([quality, 1 - quality])
        some = weights > 0
        both, truth = np.concatenate([vectors, vectors])[some], np.repeat([1, 0], count)[some]
        found = LogisticRegression(C=self.strength, max_iter=1000).fit(both, truth, weights[some])
        return found.coef_[0].astype(np.float64), float(found.intercept_[0])

    def _ridge(self, vectors: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, float]:
        import numpy as np
        from sklearn.linear_model import Ridge

        found = Ridge(alpha=1 / self.strength, solver="cholesky").fit(vectors.astype(np.float64), tokens)
        return found.coef_, float(found.intercept_)

    @classmethod
    def quality(cls, arrays: Arrays, settings: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
        import numpy as np

        logits = vectors @ arrays["slopes"].T + arrays["offsets"]
        if settings.get("tried"):
            right: np.ndarray = 1 / (1 + np.exp(-logits))
            return right
        likely: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
        return likely / likely.sum(1, keepdims=True)

    @classmethod
    def tokens(cls, arrays: Arrays, settings: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
        import numpy as np

        return np.maximum(vectors @ arrays["token_slopes"].T + arrays["token_offsets"], 0.0)


def _known(vectors: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a target was tried on, and how that went."""
    import numpy as np

    known = ~np.isnan(values)
    return vectors[known], values[known]
