"""A base in plain linear layers, with the weights its adapters were trained on: dequantise(quantise(W)), not W."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graftline.stages.lm.held import load_held

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_dequantised(directory: Path, held: str) -> PreTrainedModel:
    """A causal language model in fp32 whose linear layers, all but the output head, are plain ones with the values they
    have when they are held so (a principal part kept in float is added to its quantised rest).

    Args:
        held: as an adapter's `graftline.json` says (`stages/lm/held.py`).

    Raises:
        AdapterMismatch: it is not known how to hold a base so.
    """
    import torch

    from graftline.stages.lm.nf4 import Nf4Linear, dequantised  # bitsandbytes by way of it, which keeps it quiet

    model = load_held(directory, "float32", held)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Nf4Linear):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            plain.weight = torch.nn.Parameter(dequantised(layer), requires_grad=False)
            if layer.bias is not None:
                plain.bias = torch.nn.Parameter(layer.bias.detach().float(), requires_grad=False)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, plain)
    return model
