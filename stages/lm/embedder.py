"""A reference to an embedding model: built in, a directory, or a Hub id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from graftline.stages.errors import InvalidField
from graftline.stages.lm import minilm, model_files, smollm2, tiny_embedder
from graftline.stages.lm.load import model_digest
from graftline.stages.specification import Pins
from graftline.stages.stage import Context, Stage

BUILT_IN = {minilm.NAME: minilm.IDENTITY, "tiny": tiny_embedder.IDENTITY}
"""Name → what stands for the model in fingerprints."""
KEPT = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "*.model", "modules.json", "sentence_bert_config.json",
    "1_Pooling/config.json",
)  # fmt: skip
"""Files of a model directory that are copied, the last three those of sentence-transformers."""


class Embedder(Stage):
    """A model that turns a text into a vector of length 1, near those of texts that mean alike; it writes nothing.

    Makes a clean Hugging Face directory under `model/`, which `lm.embedding.open_embedder` opens. Token vectors are
    averaged (or the first is taken, where the directory's `1_Pooling` says so), texts are cut where its
    `sentence_bert_config.json` says (`minilm-l6`: after 256 tokens, 384 numbers a vector).

    Args:
        model: given by position. `minilm-l6` (built in, from the package index), `tiny` (hashed words without a
            model, for tests), a local directory, or a Hub id.
        revision: of a Hub id: a branch, tag or commit (None: its main branch, as it is at the first plan).

    Raises:
        ModelNotFound: no built-in, directory or reachable Hub id has this name, it has no safetensors, or it ends in
            layers that are not supported.

    The properties its tests check: it is refused where a language model is required; two directories with the same
    files have one fingerprint.
    """

    makes = "embedder"
    method = "lm.embedder"
    origin: ClassVar[str] = "sentence-transformers' own model directories"
    on_driver_node = True

    model: str
    revision: str | None = None

    def __init__(self, model: str | None = None, /, **fields: Any) -> None:
        super().__init__(**(fields if model is None else {"model": model, **fields}))

    def check(self) -> None:
        if not self.model.strip():
            raise InvalidField("is empty", where="Embedder.model", do="name a model")
        if self.model == smollm2.NAME:
            raise InvalidField(
                f"{self.model} writes text", where="Embedder.model", do=f"use an embedding model: {minilm.NAME}"
            )
        if self.revision is not None and (self.model in BUILT_IN or model_files.looks_like_path(self.model)):
            raise InvalidField(f"{self.model} has no revisions", where="Embedder.revision", do="leave it out")

    @property
    def name(self) -> str:
        """The label, else the model's name."""
        return self.label or self.model

    def pins(self, resolve: Pins) -> Mapping[str, Any]:
        return model_files.pinned(self.model, self.revision, BUILT_IN, resolve)

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        from graftline.stages.lm.embedding import pooling

        folder = out / "model"
        folder.mkdir(parents=True)
        seconds = 0.0
        metrics: dict[str, Any] = {}
        if self.model == "tiny":
            tiny_embedder.write(folder)
            return {"fetch_seconds": 0.0, "parameters": 0}
        if self.model == minilm.NAME:
            source, seconds = minilm.directory()
            model_files.copy(source, folder, KEPT)
        else:
            seconds, metrics = model_files.gather(self.model, self.revision, KEPT, context, folder)
        model_files.check_files(folder, self.model)
        pooling(folder, self.model)
        model_files.public(folder)
        return {
            "fetch_seconds": round(seconds, 3),
            "parameters": model_files.parameters(folder),
            "weights_digest": model_digest(folder),
            **metrics,
        }
