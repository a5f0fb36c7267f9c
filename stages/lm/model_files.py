"""Where a named model's files are: built in, a directory, or on the Hub."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftline.stages.errors import FileMissing, ModelNotFound
from graftline.stages.lm import hub
from graftline.stages.lm.load import tensors_header
from graftline.stages.specification import Pins
from graftline.stages.stage import Context

WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the architectures of models that write text end."""


def pinned(model: str, revision: str | None, built_in: Mapping[str, str], resolve: Pins) -> Mapping[str, Any]:
    """What stands for a model in fingerprints, as `Specification.pins` answers it.

    Args:
        built_in: name → identity of the models that need no look-up.

    Raises:
        ModelNotFound: no built-in, directory or reachable Hub id has this name.
    """
    if model in built_in:
        return {"model": built_in[model]}
    try:
        return {"model": f"files:{resolve.file(model)}"}
    except FileMissing as error:
        if looks_like_path(model):
            raise ModelNotFound("there is no such model directory", where=model, do="check the path") from error
    commit = resolve.pinned(hub.pin(model, revision), lambda: hub.commit(model, revision))
    return {"model": model, "revision": commit}


def gather(
    model: str, revision: str | None, kept: Sequence[str], context: Context, folder: Path
) -> tuple[float, dict[str, Any]]:
    """Copy a directory's or a Hub model's files into a folder, as pinned when the run was planned.

    Args:
        kept: patterns of the files to copy, relative to the model's directory.

    Returns:
        The seconds a download took, and the metric `revision` of a Hub model.
    """
    local = Path(context.file(model))
    if local.is_dir() or looks_like_path(model):
        copy(local, folder, kept)
        return 0.0, {}
    commit = context.pinned(hub.pin(model, revision)) or hub.commit(model, revision)
    source, seconds = hub.snapshot(model, commit, kept)
    copy(source, folder, kept)
    return seconds, {"revision": source.name}


def copy(source: Path, folder: Path, kept: Sequence[str]) -> None:
    """Copy the files that match, following links: the Hub's cache is made of them."""
    if not source.is_dir():
        raise ModelNotFound("there is no such model directory", where=str(source), do="check the path")
    for pattern in kept:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                target = folder / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def check_files(folder: Path, model: str) -> None:
    """Raise `ModelNotFound` unless there is a config with safetensors beside it."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelNotFound(
            "has no config.json with safetensors beside it",
            where=model,
            do="convert its weights to safetensors (pickled weights are never loaded)",
        )


def refuse_embedding_model(folder: Path, model: str) -> None:
    """Raise `ModelNotFound` where a directory's model does not write text: transformers would give it an output layer
    of random numbers without a word."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    found = config.get("architectures") or []
    if found and not any(name.endswith(WRITES) for name in found):
        raise ModelNotFound(
            f"is a {found[0]}, which writes no text",
            where=model,
            do=f"use an instruct model; for embeddings, Embedder({model!r})",
        )


def looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def public(folder: Path) -> None:
    """Make all files readable: safetensors writes files that are their owner's alone."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def parameters(folder: Path) -> int:
    """Numbers in the folder's safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    return sum(math.prod(entry["shape"]) for file in files for entry in tensors_header(file)[0].values())
