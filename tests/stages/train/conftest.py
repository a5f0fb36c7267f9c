"""Tiny real parts: a two-layer Llama and the built-in `tiny` model, prepared rows, and a context without a pipeline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from graftline.stages.artefact import Artefact
from graftline.stages.rows import FIXED, PREFERENCE, schema
from graftline.stages.stage import Resources, Stage
from graftline.stages.train.loop import Settings
from graftline.stages.train.prepared import PreparedRows

VOCABULARY = 64


@functools.cache
def _weights() -> dict[str, torch.Tensor]:
    return _llama().state_dict()


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():  # larger than the usual start, so that what should differ does
            torch.nn.init.normal_(parameter, std=0.2)
    model.config.use_cache = False
    return model.eval()


@pytest.fixture
def llama() -> Callable[[], Any]:
    """Makes the same random Llama each time: fp32, 64 tokens of vocabulary, two layers."""
    import peft  # noqa: F401  seconds, which are no test's own

    _weights()

    def make() -> Any:
        model = _llama()
        model.load_state_dict(_weights())
        return model

    return make


@pytest.fixture
def repacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every processor is one on which bitsandbytes repacks 4-bit weights at an evaluation."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


@pytest.fixture
def rows() -> Callable[..., PreparedRows]:
    """Makes prepared rows of these lengths, the last third of each trained."""

    def make(lengths: Sequence[int], seed: int = 0) -> PreparedRows:
        return PreparedRows(_tokens(lengths, seed))

    return make


def _tokens(lengths: Sequence[int], seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    ids = [draw.integers(3, VOCABULARY, length).astype(np.int32) for length in lengths]
    trained = [[place >= length - max(1, length // 3) for place in range(length)] for length in lengths]
    return pa.table(
        {
            "id": [f"r{index:03d}" for index in range(len(lengths))],
            "parents": pa.array([[] for _ in lengths], pa.list_(pa.string())),
            "group": [f"r{index:03d}" for index in range(len(lengths))],
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "trained": pa.array(trained, pa.list_(pa.bool_())),
        }
    )


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Makes settings for short runs."""

    def make(**changed: Any) -> Settings:
        given = {"steps": 6, "seed": 0, "bin_tokens": 40, "eval_every": 3, "checkpoint_every": 1}
        return Settings(**{**given, **changed})

    return make


@dataclass
class Recorder:
    """A reporter that keeps checkpoints in a folder and numbers in memory, and may be killed after a step."""

    folder: Path
    kill_after: int | None = None
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from graftline.stages.train.reporting import FolderReporter

        self._folder = FolderReporter(self.folder, self.log, lambda *_, **__: None)
        self.latest, self.save, self.progress = self._folder.latest, self._folder.save, self._progress

    def log(self, step: int, **numbers: float) -> None:
        self.logged.append((step, numbers))

    def _progress(self, done: int, total: int, **numbers: float) -> None:
        if done == self.kill_after:
            raise KeyboardInterrupt(f"killed after step {done}")

    def values(self, name: str) -> list[float]:
        return [numbers[name] for _, numbers in self.logged if name in numbers]


@pytest.fixture
def recorder(tmp_path: Path) -> Callable[..., Recorder]:
    """Makes reporters on one folder (or a named one)."""

    def make(name: str = "checkpoints", kill_after: int | None = None) -> Recorder:
        return Recorder(tmp_path / name, kill_after)

    return make


@dataclass
class FakeContext:
    """What a stage needs of a context, without a pipeline."""

    scratch: Path
    artefacts: dict[Stage, Artefact] = field(default_factory=dict)
    resources: Resources = field(default_factory=lambda: Resources(cpus=1.0, threads=1))
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    progressed: list[tuple[int, int]] = field(default_factory=list)

    def opened(self, stage: Stage) -> Artefact:
        return self.artefacts[stage]

    def log(self, step: int, **numbers: float) -> None:
        self.logged.append((step, numbers))

    def progress(self, done: int, total: int, **numbers: float) -> None:
        self.progressed.append((done, total))

    def values(self, name: str) -> list[float]:
        return [numbers[name] for _, numbers in self.logged if name in numbers]


@pytest.fixture
def context(tmp_path: Path) -> FakeContext:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return FakeContext(scratch)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact folder of the built-in `tiny` model."""
    from graftline.stages.lm import tiny

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "model").mkdir()
    tiny.write(folder / "model")
    return folder


@pytest.fixture
def opened() -> Callable[..., Artefact]:
    """Makes an artefact of what lies in a folder, or of rows put there."""
    return _opened


def _opened(folder: Path, kind: str = "model", rows: pa.Table | None = None, digest: str = "0" * 64) -> Artefact:
    import pyarrow.fs
    import pyarrow.parquet as pq

    if rows is not None:
        (folder / "rows").mkdir(parents=True)
        pq.write_table(rows, folder / "rows" / "part.parquet")
    files = {path.relative_to(folder).as_posix(): {} for path in folder.rglob("*") if path.is_file()}
    manifest = {"kind": kind, "files": files, "metrics": {}, "digest": digest, "fingerprint": "0" * 64}
    return Artefact(manifest, pyarrow.fs.LocalFileSystem(), str(folder))


SENTENCES = ("the water is cold", "my card was charged twice", "no signal again", "where is it", "please fix the lamp")


@pytest.fixture
def messages() -> Callable[..., pa.Table]:
    """Makes rows of short questions and shorter answers."""
    return _messages


def _messages(count: int, start: int = 0) -> pa.Table:
    made = []
    for index in range(start, start + count):
        text, answer = f"{SENTENCES[index % 5]} {index}", ("water", "card", "signal")[index % 3]
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        gen = {"stage": "", "model": "", "round": 0, "seed": 0}
        made.append(
            {"id": f"m{index:03d}", "parents": [], "group": f"m{index:03d}", "source": "test", "messages": messages}
            | {"answer": answer, "gen": gen}
        )
    return pa.Table.from_pylist(made, schema=schema(FIXED))


@pytest.fixture
def preferences() -> Callable[..., pa.Table]:
    """Makes preference rows: short questions, a chosen answer and a longer rejected one."""
    return _preferences


def _preferences(count: int, start: int = 0) -> pa.Table:
    made = []
    for index in range(start, start + count):
        given = {"id": f"p{index:03d}", "parents": [], "group": f"p{index:03d}", "source": "test"}
        given["gen"] = {"stage": "", "model": "", "round": 0, "seed": 0}
        given["prompt"] = [{"role": "user", "content": f"{SENTENCES[index % 5]} {index}"}]
        made.append(given | {"chosen": ("water", "card", "signal")[index % 3], "rejected": "no idea at all"})
    return pa.Table.from_pylist(made, schema=schema(PREFERENCE))
