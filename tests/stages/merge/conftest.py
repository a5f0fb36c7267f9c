"""The tiny model and random adapters of it as artefacts, and a context that opens them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from graftline.stages.artefact import Artefact
from graftline.stages.rows import schema
from graftline.stages.stage import Resources, Stage


class Opened:
    """A context of opened artefacts, by stage."""

    resources = Resources(cpus=1.0, threads=1)

    def __init__(self, made: dict[Stage, Artefact]) -> None:
        self.made = made
        self.shown: list[tuple[int, int]] = []

    def opened(self, stage: Stage) -> Artefact:
        return self.made[stage]

    def progress(self, done: int, total: int, **numbers: float) -> None:
        self.shown.append((done, total))


@pytest.fixture
def opened() -> type[Opened]:
    return Opened


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artefact]:
    """An artefact of what `fill(folder)` writes."""

    def make(folder: str, fill: Callable[[Path], None], name: str = "", **metrics: Any) -> Artefact:
        place = tmp_path_factory.mktemp("artefact")
        (place / folder).mkdir()
        fill(place / folder)
        files = {str(file.relative_to(place)): {} for file in sorted(place.rglob("*")) if file.is_file()}
        digest = hashlib.sha256((name or place.name).encode()).hexdigest()
        manifest = {"digest": digest, "fingerprint": digest[::-1], "files": files, "metrics": metrics, "kind": folder}
        return Artefact(manifest, fs.LocalFileSystem(), str(place))

    return make


@pytest.fixture(scope="session")
def base(committed: Callable[..., Artefact]) -> Artefact:
    import bitsandbytes  # noqa: F401  seconds, which are no test's own
    import peft  # noqa: F401

    from graftline.stages.lm import tiny

    return committed("model", tiny.write, "base")


@pytest.fixture(scope="session")
def adapter(base: Artefact, committed: Callable[..., Artefact]) -> Callable[..., Artefact]:
    """Makes an adapter with random factors: `size` of them, and PEFT's settings."""

    def make(
        seed: int = 0, rank: int = 4, *, size: float = 0.1, held: str = "none", weights: str = "",
        trained_on: Sequence[str] = (), rows: int | None = 10, **settings: Any,
    ) -> Artefact:  # fmt: skip
        import torch
        from peft import LoraConfig, get_peft_model

        from graftline.stages.lm.load import load_model, model_digest

        directory = base.directory("model")
        given = {"lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings}

        def write(folder: Path) -> None:
            model = get_peft_model(load_model(directory, "float32"), LoraConfig(r=rank, **given))
            draw = torch.Generator().manual_seed(seed)
            for name, tensor in model.named_parameters():
                if "lora_" in name:
                    tensor.data = torch.randn(tensor.shape, generator=draw) * size
            model.save_pretrained(folder)
            card = {"base": {"name": "tiny", "weights_digest": weights or model_digest(directory), "held": held}}
            (folder / "graftline.json").write_text(json.dumps(card), encoding="utf-8")
            if trained_on:
                of = schema({"id": "string", "parents": "list<string>", "group": "string"})
                lines = [{"id": id, "parents": [], "group": id} for id in trained_on]
                pq.write_table(pa.Table.from_pylist(lines, schema=of), folder.parent / "trained_on.parquet")

        return committed("adapter", write, f"{seed} {rank} {size}", **({} if rows is None else {"rows": rows}))

    return make
