"""A reference to a language model: built in, a directory, or a Hub id."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from graftline.stages.errors import FileMissing, InvalidField, ModelNotFound
from graftline.stages.lm import hub, smollm2, tiny
from graftline.stages.lm.load import model_digest, tensors_header
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
        ModelNotFound: no built-in, directory or reachable Hub id has this name, or it has no safetensors.

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
        if self.revision is not None and (self.model in BUILT_IN or _looks_like_path(self.model)):
            raise InvalidField(f"{self.model} has no revisions", where="Llm.revision", do="leave it out")

    @property
    def name(self) -> str:
        """The label, else the model's name."""
        return self.label or self.model

    def pins(self, resolve: Pins) -> Mapping[str, Any]:
        if self.model in BUILT_IN:
            return {"model": BUILT_IN[self.model]}
        try:
            return {"model": f"files:{resolve.file(self.model)}"}
        except FileMissing as error:
            if _looks_like_path(self.model):
                raise ModelNotFound(
                    "there is no such model directory", where=self.model, do="check the path"
                ) from error
        commit = resolve.pinned(hub.pin(self.model, self.revision), lambda: hub.commit(self.model, self.revision))
        return {"model": self.model, "revision": commit}

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        folder = out / "model"
        folder.mkdir(parents=True)
        seconds, metrics = 0.0, {}
        local = Path(context.file(self.model))
        if self.model == "tiny":
            tiny.write(folder)
        elif self.model == smollm2.NAME:
            source, seconds = smollm2.directory()
            _copy(source, folder)
        elif local.is_dir() or _looks_like_path(self.model):
            _copy(local, folder)
        else:
            commit = context.pinned(hub.pin(self.model, self.revision)) or hub.commit(self.model, self.revision)
            source, seconds = hub.snapshot(self.model, commit, KEPT)
            _copy(source, folder)
            metrics["revision"] = source.name
        weights = sorted(folder.glob("*.safetensors"))
        if not (folder / "config.json").is_file() or not weights:
            raise ModelNotFound(
                "has no config.json with safetensors beside it",
                where=self.model,
                do="convert its weights to safetensors (pickled weights are never loaded)",
            )
        shapes = [entry["shape"] for file in weights for entry in tensors_header(file)[0].values()]
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes files that are their owner's alone
        return {
            "fetch_seconds": round(seconds, 3),
            "parameters": sum(math.prod(shape) for shape in shapes),
            "weights_digest": model_digest(folder),
            **metrics,
        }


def _copy(source: Path, folder: Path) -> None:
    if not source.is_dir():
        raise ModelNotFound("there is no such model directory", where=str(source), do="check the path")
    for pattern in KEPT:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)  # follows links: the Hub's cache is made of them


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")
