"""A base in plain linear layers, with the weights its adapters were trained on: dequantise(quantise(W)), not W."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import AdapterMismatch
from graftline.stages.lm.load import load_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

DOUBLE = {"nf4": True, "nf4-single": False}
"""How a base may be held beside `none` → whether the scales of its blocks are quantised, too."""


def load_dequantised(directory: Path, held: str) -> PreTrainedModel:
    """A causal language model in fp32 whose linear layers, all but the output head, have the values they have when
    they are held so. Quantised from the weights as they are stored, whatever the number format training computes in.

    Args:
        held: `none`, `nf4` or `nf4-single`, as an adapter's `graftline.json` says.

    Raises:
        AdapterMismatch: it is not known how to hold a base so.
    """
    import torch

    if held != "none" and held not in DOUBLE:
        raise AdapterMismatch(
            f"a base held as {held!r} cannot be rebuilt here", where=str(directory), do=f"use {', '.join(DOUBLE)}"
        )
    _bitsandbytes()
    if held == "none":
        return load_model(directory, "float32")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model = load_model(directory, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    head = model.get_output_embeddings()
    layers = {
        name: dequantised(module.weight.detach(), held)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    model = model.float()
    for name, weight in layers.items():
        model.get_submodule(name).weight.data = weight
    return model


def dequantised(weight: Tensor, held: str) -> Tensor:
    """A weight as it is multiplied with when it is held so: 4-bit NormalFloat in blocks of 64, in fp32."""
    import torch

    functional = _bitsandbytes()
    codes, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=64, compress_statistics=DOUBLE[held], quant_type="nf4"
    )
    state.dtype = torch.float32
    found: Tensor = functional.dequantize_4bit(codes, state)
    return found


def _bitsandbytes() -> Any:
    """bitsandbytes' functions. Whoever imports it on a processor with AVX512-BF16 is told to install a package: not
    our users, whether we import it or PEFT does after us."""
    theirs = logging.getLogger("bitsandbytes")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    finally:
        theirs.setLevel(level)
    return functional
