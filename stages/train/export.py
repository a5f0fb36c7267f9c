"""What training leaves behind: the folder, the card that says which base it belongs to, and its digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from graftline.stages.lm.load import CARD
from graftline.stages.rows import canonical

NOT_IDENTITY = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode")
"""Entries of a PEFT config that do not change what the adapter computes: names, paths and versions."""


def adapter_digest(folder: Path) -> str:
    """sha256 over an adapter's sorted (name, dtype, shape, bytes) and its canonical config without paths: the same
    adapter has the same digest whatever wrote it, wherever, and in whatever order."""
    from graftline.stages.lm.load import tensors_digest

    tensors = tensors_digest(sorted(folder.glob("*.safetensors")))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    kept = {name: _sorted(name, value) for name, value in config.items() if name not in NOT_IDENTITY}
    return hashlib.sha256(f"{tensors}\n{canonical(kept)}".encode()).hexdigest()


def write_card(folder: Path, base: dict[str, str], about: dict[str, Any]) -> None:
    """Write `graftline.json` into an exported folder."""
    text = json.dumps({"base": base, **about}, indent=2, sort_keys=True)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def _sorted(name: str, value: Any) -> Any:
    # PEFT keeps layer names in sets, and writes them in the order of the process's hash seed.
    return sorted(value) if name in ("target_modules", "modules_to_save", "exclude_modules") and value else value
