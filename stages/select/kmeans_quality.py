"""Good rows from everywhere: quality sampling within k-means clusters."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from graftline.stages.expected import Expected, Given
from graftline.stages.lm.embedder import Embedder
from graftline.stages.rows import Columns, derived_seed
from graftline.stages.score.embedding import COLUMN, embedded
from graftline.stages.select.ranking import missing, ranked, refuse_unscored
from graftline.stages.shapes import Selector, Verdict
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, EmbeddingModel, Stage

if TYPE_CHECKING:
    import pyarrow as pa


class KmeansQuality(Selector):
    """Keeps `budget` rows spread over all kinds of texts, within each kind the better ones more often (kMQ).

    The rows' embeddings are put into k-means clusters, the budget is shared out equally among them (what a small
    cluster cannot use goes to the others), and each cluster's rows are drawn without replacement, with odds
    exp(quality / temperature), quality in standard deviations over all rows. The paper's one-shot form; it draws once
    from quality as it is, without rounds.

    Args:
        by: the column of the quality, int64 or float64; rows without one (missing or NaN) are drawn last.
        budget: rows to keep; all of them where there are fewer.
        embedder: the embedding model (unused where the rows have a column `embedding`).
        clusters: how many; None: a quarter of the budget, at most 1024 (a choice of ours: the paper takes 512 to 1024
            of tens of thousands of rows). At most as many as there are different embeddings.
        temperature: 0 = always the best of a cluster, 1 = a row one standard deviation better is drawn e times as
            often, larger = ever more at random.
        largest: the largest values are the best, else the smallest.
        seed: of the clusters and the draw.

    The properties its tests check: exactly the budget, no row twice; every cluster gets its share; the draw's odds;
    nothing depends on the rows' order.
    """

    method = "select.kmq"
    papers = (Paper("Diversify and Conquer: Diversity-Centric Data Selection with Iterative Refinement"),)

    by: str
    budget: Annotated[int, Field(ge=1)]
    embedder: EmbeddingModel = Embedder("minilm-l6")
    clusters: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] = 1.0
    largest: bool = True
    seed: Annotated[int, Field(ge=0)] = 0

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"rows": {"messages": "messages", self.by: "number"}}

    def expand(self) -> Mapping[str, Stage]:
        return embedded(self.rows, self.embedder)

    def expected(self, given: Given) -> Expected:
        return Expected(given.rows(self.rows).at_most(self.budget))

    def select_rows(self, table: pa.Table, context: Context) -> Iterable[Verdict]:
        rows = table["id"].to_pylist()
        refuse_unscored(table[self.by].to_pylist(), self.by, self.name)
        for stage in self.expand().values():
            table = context.opened(stage).rows(["id", self.by, COLUMN])
        table = table.filter(table[COLUMN].is_valid()).sort_by("id")
        ids, scores = table["id"].to_pylist(), table[self.by].to_pylist()
        order = {row: rank for rank, row in enumerate(self._drawn(ids, scores))}
        count = self.clusters or min(1024, math.ceil(self.budget / 4))
        clusters = clustered(ids, table[COLUMN], count, self.seed)
        kept: set[str] = set()
        for members, share in zip(clusters, shared_out(self.budget, [len(each) for each in clusters]), strict=True):
            kept.update(sorted(members, key=order.__getitem__)[:share])
        for row in rows:
            reason = "" if row in kept else "not drawn" if row in order else "nothing to embed"
            yield Verdict(row, "filtered" if reason else "kept", reason)

    def _drawn(self, ids: Sequence[str], scores: Sequence[float | None]) -> list[str]:
        """All rows in the order they are drawn: the largest sums of score and Gumbel noise first, which is drawing
        without replacement with odds exp(score)."""
        known = [score for score in scores if score is not None and math.isfinite(score)]
        mean, spread = (statistics.fmean(known), statistics.pstdev(known)) if known else (0.0, 0.0)
        scale = (1 if self.largest else -1) / (spread * (self.temperature or 1.0) or 1.0)

        def sums(row: str, score: float | None) -> float | None:
            if score is None or missing(score):
                return None
            uniform = ((derived_seed(self.seed, row) >> 11) + 0.5) / 2**52  # neither 0 nor 1
            return (score - mean) * scale - (math.log(-math.log(uniform)) if self.temperature else 0.0)

        return [ids[place] for place in ranked(ids, [sums(*each) for each in zip(ids, scores, strict=True)])]


def clustered(ids: Sequence[str], vectors: pa.ChunkedArray, count: int, seed: int) -> list[list[str]]:
    """The ids in k-means clusters, the smaller clusters first."""
    import numpy as np
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if not ids:
        return []
    points = np.reshape(vectors.combine_chunks().flatten().to_numpy(), (len(ids), -1))
    count = min(count, len(np.unique(points, axis=0)))
    with threadpool_limits(1):  # the threads' partial sums are added in the order in which they finish
        labels = KMeans(count, n_init=5, max_iter=300, random_state=seed).fit(points).labels_
    found: defaultdict[int, list[str]] = defaultdict(list)
    for row, label in zip(ids, labels.tolist(), strict=True):
        found[label].append(row)
    return sorted(found.values(), key=lambda members: (len(members), members))


def shared_out(budget: int, sizes: Sequence[int]) -> list[int]:
    """The budget in equal shares of groups with these sizes, which increase: what a group cannot use, the later ones
    get, and so they do the remainder."""
    shares: list[int] = []
    for position, size in enumerate(sizes):
        shares.append(min(size, (budget - sum(shares)) // (len(sizes) - position)))
    return shares
