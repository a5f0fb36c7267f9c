"""A handle like Ray Serve's, on an engine that answers from a table; artefacts to serve. No Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs as fs
import pytest

from graftline.stages.artefact import Artefact
from graftline.stages.lm import tiny
from graftline.stages.lm.load import model_digest


class Handle:
    """Answers every call with `answered(call)`: an answer, or an exception to raise."""

    def __init__(self, answered: Callable[[Mapping[str, Any]], Any]) -> None:
        self.answered = answered
        self.calls: list[Mapping[str, Any]] = []
        self.answer, self.stream, self.health = (
            _Method(method) for method in (self._answer, self._stream, self._health)
        )

    def options(self, stream: bool) -> Handle:
        return self

    async def _answer(self, call: Mapping[str, Any]) -> Any:
        self.calls.append(call)
        found = self.answered(call)
        if isinstance(found, Exception):
            raise found
        return found

    async def _stream(self, call: Mapping[str, Any]) -> AsyncIterator[Any]:
        found = await self._answer(call)
        for word in found["text"].split(" "):
            if word == "BREAK":
                raise found["error"]
            yield {"text": f"{word} "}
        yield {name: value for name, value in found.items() if name != "text"}

    async def _health(self) -> bool:
        await self._answer({})
        return True


class _Method:
    def __init__(self, method: Any) -> None:
        self.remote = method


@pytest.fixture
def handle() -> type[Handle]:
    return Handle


@pytest.fixture
def committed(tmp_path: Path) -> Callable[..., Artefact]:
    """Commits a folder's files as an artefact: `committed("model", fill)`, where `fill(folder)` writes them."""

    def make(name: str, fill: Callable[[Path], None], folder: str = "model", **manifest: Any) -> Artefact:
        place = tmp_path / "store" / name
        (place / folder).mkdir(parents=True)
        fill(place / folder)
        files = {str(file.relative_to(place)): {} for file in sorted(place.rglob("*")) if file.is_file()}
        manifest = {"digest": hashlib.sha256(name.encode()).hexdigest(), "files": files, "metrics": {}, **manifest}
        (place / "artefact.json").write_text(json.dumps(manifest), encoding="utf-8")
        return Artefact(manifest, fs.LocalFileSystem(), str(place), uri=place.absolute().as_uri())

    return make


@pytest.fixture
def base(committed: Callable[..., Artefact]) -> Artefact:
    """The tiny model."""
    return committed("model", tiny.write, kind="model")


@pytest.fixture
def adapter(committed: Callable[..., Artefact], base: Artefact) -> Callable[..., Artefact]:
    """Makes PEFT adapters of the tiny model that change its answers."""

    def make(name: str, weights_digest: str | None = None, seed: int = 1) -> Artefact:
        import torch
        from peft import LoraConfig, get_peft_model

        from graftline.stages.lm.load import load_model

        def write(folder: Path) -> None:
            torch.manual_seed(seed)
            model = get_peft_model(
                load_model(base.directory("model"), "float32"),
                LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
            )
            model.save_pretrained(folder)
            digest = weights_digest or model_digest(base.directory("model"))
            card = {"base": {"name": "tiny", "weights_digest": digest, "held": "none"}}
            (folder / "graftline.json").write_text(json.dumps(card))

        return committed(name, write, "adapter", kind="adapter", fingerprint="f" * 64)

    return make
