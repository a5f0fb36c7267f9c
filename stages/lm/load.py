"""Models from their Hugging Face directories: weights, tokenizer, digest, and the number format to compute in."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import statistics
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftline.stages.errors import AdapterMismatch, EngineFailed, ModelNotFound

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16"]
DIGEST_FILE = "weights_digest.json"
"""Beside the weights: their digest, and the sizes of the files it was computed from."""
CARD = "graftline.json"
"""In an adapter directory: which base it belongs to."""


def load_model(directory: Path, dtype: str | torch.dtype) -> PreTrainedModel:
    """A causal language model in evaluation mode, on the CPU.

    `config.use_cache` is off, because a forward pass with a cache lets packed rows see each other: transformers finds
    restarted positions only where there is none. Generation turns its own cache on.

    Args:
        directory: with `config.json` and safetensors; nothing is fetched, and pickled weights are refused.
        dtype: `float32` or `bfloat16`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with _loading(directory), quietly():
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
        )
    model.config.use_cache = False
    return model.eval()


def load_encoder(directory: Path) -> PreTrainedModel:
    """A model without an output layer, in float32 and evaluation mode, on the CPU: what embeds texts.

    Args:
        directory: with `config.json` and safetensors; nothing is fetched, and pickled weights are refused.
    """
    import torch
    from transformers import AutoModel

    with _loading(directory), quietly():
        model: PreTrainedModel = AutoModel.from_pretrained(
            directory, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    return model.eval()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The directory's tokenizer, with its chat template."""
    from transformers import AutoTokenizer

    with _loading(directory):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    return tokenizer


def model_digest(directory: Path) -> str:
    """sha256 over the sorted (name, dtype, shape, bytes) of the model's tensors: its identity, however they are
    spread over files. Kept in `weights_digest.json` beside them where that can be written."""
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise ModelNotFound("there are no safetensors", where=str(directory), do="convert the weights to safetensors")
    sizes = {file.name: file.stat().st_size for file in files}
    kept = Path(directory) / DIGEST_FILE
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known.get("files") == sizes:
            return str(known["weights_digest"])
    digest = tensors_digest(files)
    with contextlib.suppress(OSError):  # a read-only directory costs the time again, nothing more
        kept.write_text(json.dumps({"weights_digest": digest, "files": sizes}, indent=1) + "\n", encoding="utf-8")
    return digest


def tensors_digest(files: list[Path]) -> str:
    """sha256 over the sorted (name, dtype, shape, bytes) of the tensors in safetensors files."""
    places: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for file in files:
        header, start = tensors_header(file)
        for name, entry in header.items():
            places[name] = (file, start, entry)
    digest = hashlib.sha256()
    for name in sorted(places):
        file, start, entry = places[name]
        begin, end = entry["data_offsets"]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        with open(file, "rb") as data:
            data.seek(start + begin)
            left = end - begin
            while left:
                piece = data.read(min(left, 1 << 22))
                if not piece:
                    raise EngineFailed(f"the tensor {name} is cut short", where=str(file), do="fetch the model again")
                digest.update(piece)
                left -= len(piece)
    return digest.hexdigest()


def tensors_header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Name → dtype, shape and place of a safetensors file's tensors, and where their bytes start."""
    with open(file, "rb") as data:
        start = data.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(file.stat().st_size - 8, 100_000_000):
            raise EngineFailed("is not a safetensors file", where=str(file), do="fetch it again")
        header = json.loads(data.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def refuse_other_base(directory: Path, digest: str) -> None:
    """Raise `AdapterMismatch` where the adapter's `graftline.json` records the digest of another base."""
    card = Path(directory) / CARD
    if not card.is_file():
        return
    base: dict[str, Any] = json.loads(card.read_text(encoding="utf-8")).get("base", {})
    recorded = base.get("weights_digest")
    if recorded is not None and recorded != digest:
        raise AdapterMismatch(
            f"was made for {base.get('name', 'a model')} with the weights {recorded[:16]}, these are {digest[:16]}",
            where=str(directory),
            do="use the base it was trained on",
        )


@functools.cache
def probe_dtype() -> Dtype:
    """The faster of bf16 and fp32 on this machine for a matrix product of this size of model: where the processor has
    no bf16 unit, bf16 is several times slower than fp32. On a GPU: bf16. Takes under 0.1 s, once a process."""
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    names: tuple[Dtype, ...] = ("float32", "bfloat16")
    operands = {name: _operands(getattr(torch, name)) for name in names}
    seconds: dict[Dtype, list[float]] = {name: [] for name in names}
    for attempt in range(6):
        for name in names:  # in turn, so that another process's burst meets both
            x, w = operands[name]
            started = time.perf_counter()
            x @ w
            if attempt:  # the first chooses and compiles the kernel
                seconds[name].append(time.perf_counter() - started)
    return min(names, key=lambda name: statistics.median(seconds[name]))


def _operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    return torch.full((512, 576), 0.5, dtype=dtype), torch.full((1536, 576), 0.5, dtype=dtype).t()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars and advice on stderr."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _loading(directory: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    if not (Path(directory) / "config.json").is_file():
        raise ModelNotFound("there is no config.json", where=str(directory), do="name a Hugging Face model directory")
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineFailed(f"cannot load the model: {error}", where=str(directory)) from error
