"""Routing by a linear classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.read.jsonl import Jsonl
from graftline.stages.serve.route.route import Arrays, Route
from graftline.stages.specification import Paper

if TYPE_CHECKING:
    import numpy as np


class LinearRouter(Route):
    """CARROT's linear router: a target's quality is its probability under a logistic regression (softmax over the
    targets, L2 penalty) on the prompt's embedding. Targets count alike however many rows they have. Quicker than
    neighbours, and blind to what lies between clusters.

    Args:
        rows: target → rows with prompts it should answer (at least two targets).
        embedder: turns prompts into vectors.
        costs: target → cost of an answer, 0 to 1.
        mu: weight of the cost, 0 to 1.
        strength: inverse of the penalty; larger fits closer.

    Property tested: separable clusters are told apart; probabilities sum to 1 and are scikit-learn's own.
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

    @classmethod
    def quality(cls, arrays: Arrays, settings: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
        import numpy as np

        logits = vectors @ arrays["slopes"].T + arrays["offsets"]
        likely: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
        return likely / likely.sum(1, keepdims=True)
