"""A reference to a language model: built in, a directory, or a Hub id."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from graftline.stages.errors import InvalidField
from graftline.stages.lm import minilm, model_files, smollm2, tiny
from graftline.stages.lm.load import model_digest
from graftline.stages.specification import Pins
from graftline.stages.stage import Context, Stage

BUILT_IN = {smollm2.NAME: smollm2.IDENTITY, "tiny": tiny.IDENTITY}
"""Name → what stands for the model in fingerprints."""
KEPT = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template.*", "*.model",
)  # fmt: skip
"""Files of a model directory that are copied; anything else (pickled weights, code) stays behind."""


class Llm(Stage):
    """A language model, and how it is to be run.

    Makes a clean Hugging Face directory under `model/`.

    Args:
        model: given by position. `smollm2-135m-instruct` (built in, from the package index), `tiny` (random, for
            tests), a local directory, or a Hub id.
        revision: of a Hub id: a branch, tag or commit (None: its main branch, as it is at the first plan).
        dtype: `auto` takes the faster of bf16 and fp32 on the machine it runs on.
        engine: `local` batches continuously, `generate` is transformers' plain generation, `scripted` computes
            answers from prompt and seed (tests, dry runs).

    Raises:
        ModelNotFound: no built-in, directory or reachable Hub id has this name, it has no safetensors, or it writes no
            text (an embedding model).

    The property its test checks: two directories with the same files have one fingerprint, and a changed byte another.
    """

    makes = "model"
    method = "lm.llm"
    origin: ClassVar[str] = "the ecosystem's own model directories"
    on_driver_node = True

    model: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["local", "generate", "scripted"] = "local"

    def __init__(self, model: str | None = None, /, **fields: Any) -> None:
        super().__init__(**(fields if model is None else {"model": model, **fields}))

    def check(self) -> None:
        if not self.model.strip():
            raise InvalidField("is empty", where="Llm.model", do="name a model")
        if self.model == minilm.NAME:
            raise InvalidField(
                f"{self.model} embeds texts and writes none", where="Llm.model", do=f"use Embedder({self.model!r})"
            )
        if self.revision is not None and (self.model in BUILT_IN or model_files.looks_like_path(self.model)):
            raise InvalidField(f"{self.model} has no revisions", where="Llm.revision", do="leave it out")

    @property
    def name(self) -> str:
        """The label, else the model's name."""
        return self.label or self.model

    def pins(self, resolve: Pins) -> Mapping[str, Any]:
        return model_files.pinned(self.model, self.revision, BUILT_IN, resolve)

    def preflight(self, file: Callable[[str], str]) -> None:
        if self.model not in BUILT_IN:
            model_files.refuse_embedding_model(Path(file(self.model)), self.model)

    def at_hand(self, file: Callable[[str], str]) -> Path | None:
        """Its files, where this machine has them before it is made; `file` makes a path absolute."""
        if self.model == smollm2.NAME:
            return smollm2.at_hand()
        found = Path(file(self.model))
        return found if found.is_dir() else None

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        folder = out / "model"
        folder.mkdir(parents=True)
        seconds = 0.0
        metrics: dict[str, Any] = {}
        if self.model == "tiny":
            tiny.write(folder)
        elif self.model == smollm2.NAME:
            source, seconds = smollm2.directory()
            model_files.copy(source, folder, KEPT)
        else:
            seconds, metrics = model_files.gather(self.model, self.revision, KEPT, context, folder)
        model_files.check_files(folder, self.model)
        model_files.refuse_embedding_model(folder, self.model)
        model_files.public(folder)
        return {
            "fetch_seconds": round(seconds, 3),
            "parameters": model_files.parameters(folder),
            "weights_digest": model_digest(folder),
            **metrics,
        }
