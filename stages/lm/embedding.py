"""Texts as vectors: opening an embedding model's directory, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from graftline.stages.errors import ModelNotFound
from graftline.stages.lm import tiny_embedder

if TYPE_CHECKING:
    import numpy as np

BLOCK = 8
"""Texts computed together. Every block has as many rows (the last ones may be empty) of as many tokens as the text's
own length, rounded up to 8, so that no product's shape depends on who else is there. On a CPU each row then came out
with the same bits in any company, as fast as batches of any size (1.08 against 1.03 s for 154 tickets)."""
LENGTHS = 8


class TextEmbedder(Protocol):
    """An embedding model in memory."""

    size: int
    """Numbers of a vector."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, size] float32, each row of length 1 (all zeros for a text without a word or token); the same for a
        text whoever it comes with, up to rounding."""


def open_embedder(directory: Path) -> TextEmbedder:
    """The embedding model in a directory (the `model/` of an `Embedder`'s artefact).

    Raises:
        ModelNotFound: the directory holds none.
        EngineFailed: it cannot be loaded.
    """
    if (directory / tiny_embedder.FILE).is_file():
        return tiny_embedder.HashedWords()
    return SentenceEmbedder(directory)


class SentenceEmbedder:
    """A transformers encoder whose token vectors become one.

    Args:
        directory: its Hugging Face directory, with sentence-transformers' files where it has them.
    """

    def __init__(self, directory: Path) -> None:
        import torch

        from graftline.stages.lm.load import load_encoder, load_tokenizer

        self.pooling = pooling(directory, str(directory))
        self.tokenizer = load_tokenizer(directory)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = load_encoder(directory).to(self.device)
        self.size = int(self.model.config.get_text_config().hidden_size)
        self.most = _most_tokens(directory, self.tokenizer, self.model.config)

    def embed(self, texts: Sequence[str], block: int = BLOCK) -> np.ndarray:
        """See `TextEmbedder`.

        Args:
            block: rows of a block; 1 answers a single text soonest, and rounds otherwise.
        """
        import numpy as np

        found = np.zeros((len(texts), self.size), np.float32)
        if not len(texts):
            return found
        tokens = self.tokenizer(list(texts), truncation=True, max_length=self.most)["input_ids"]
        by_length: dict[int, list[int]] = {}
        for place, ids in enumerate(tokens):
            if not ids:
                continue
            by_length.setdefault(min(self.most, -(-len(ids) // LENGTHS) * LENGTHS), []).append(place)
        for length, places in sorted(by_length.items()):
            for start in range(0, len(places), block):
                part = places[start : start + block]
                found[part] = self._embed_block([tokens[place] for place in part], block, length)
        return found

    def _embed_block(self, tokens: list[list[int]], rows: int, length: int) -> np.ndarray:
        import torch

        ids = torch.full((rows, length), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros((rows, length), dtype=torch.long)
        mask[:, 0] = 1  # of a row without a text, too, which would divide by nothing
        for row, each in enumerate(tokens):
            ids[row, : len(each)] = torch.tensor(each)
            mask[row, : len(each)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.inference_mode():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            if self.pooling == "mean":
                pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            else:
                pooled = hidden[:, 0]
            vectors: np.ndarray = torch.nn.functional.normalize(pooled, dim=-1)[: len(tokens)].float().cpu().numpy()
        return vectors


def pooling(directory: Path, name: str) -> Literal["mean", "cls"]:
    """How token vectors become one, as the directory's own files say (`mean` where they say nothing).

    Raises:
        ModelNotFound: in a way that is not supported, or another layer follows.
    """
    for module in _json(directory / "modules.json", []):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ModelNotFound(f"has a layer {kind} that is not supported", where=name, do="use another model")
    told = _json(directory / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    modes = {key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
             for key, value in told.items() if key.startswith("pooling_mode_") and value is True}  # fmt: skip
    modes |= {told["pooling_mode"]} if isinstance(told.get("pooling_mode"), str) else set()
    if modes == {"mean"}:
        return "mean"
    if modes == {"cls"}:
        return "cls"
    raise ModelNotFound(f"pools its tokens by {' and '.join(sorted(modes))}", where=name, do="use one by mean or cls")


def _most_tokens(directory: Path, tokenizer: Any, config: Any) -> int:
    """Tokens of a text; what comes after them is left out."""
    told = _json(directory / "sentence_bert_config.json", {}).get("max_seq_length")
    limits = (told, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    return min(int(limit) for limit in limits if limit)


def _json(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else otherwise
