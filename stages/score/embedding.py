"""Where a row's text lies among others."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.lm.embedder import Embedder
from graftline.stages.rows import user_text
from graftline.stages.shapes import Scorer
from graftline.stages.stage import Context, EmbeddingModel, Rows, Stage

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.lm.embedding import TextEmbedder

COLUMN = "embedding"


class Embedding(Scorer):
    """Adds `embedding`, the vector (float32, of length 1) of what the user says in a row: its user turns.

    The answer is left out, since rows are to be told apart by what they ask; so is the system message, which they
    often share. A text longer than the model reads is cut; a row in which the user says nothing has no embedding.
    Stages that need embeddings add this one themselves, and all of them share its artefact.

    Args:
        embedder: the embedding model.

    The properties its tests check: a vector depends on its own row alone, whatever the batch; an empty text is
    missing, never a vector of zeros.
    """

    method = "score.embedding"
    origin = "mean-pooled sentence embeddings; no paper"
    needs = {"messages": "messages"}
    adds = {COLUMN: "list<float32>"}

    embedder: EmbeddingModel = Embedder("minilm-l6")

    def score_rows(self, table: pa.Table, context: Context) -> Mapping[str, Sequence[Any]]:
        model = _opened(context.opened(self.embedder).directory("model"))
        texts = [user_text(messages).strip() for messages in table["messages"].to_pylist()]
        told = iter(model.embed([text for text in texts if text]))
        vectors = [next(told) if text else None for text in texts]
        return {COLUMN: [vector if vector is not None and vector.any() else None for vector in vectors]}


def embedded(rows: Rows, embedder: EmbeddingModel) -> Mapping[str, Stage]:
    """What a stage that needs embeddings of its rows adds to `expand()`; nothing where they have them."""
    return {} if COLUMN in rows.columns else {"embedded": Embedding(rows=rows, embedder=embedder)}


@functools.lru_cache(maxsize=2)
def _opened(directory: Path) -> TextEmbedder:
    from graftline.stages.lm.embedding import open_embedder

    return open_embedder(directory)
