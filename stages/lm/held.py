"""A base as it is held: as it was loaded, or with its linear layers quantised.

An adapter's `graftline.json` says how the base it belongs to is held, and whoever puts the adapter on a base (an
engine, a merge, a measurement) rebuilds that base with `load_held`: the same bytes, whatever dtype it computes in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import AdapterMismatch
from graftline.stages.lm.load import CARD, load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NONE = "none"
DOUBLE = {"nf4": True, "nf4-single": False}
"""How a base can be held beside `none`, and whether its quantisation is double."""


def load_held(directory: Path, dtype: str, held: str = NONE) -> PreTrainedModel:
    """A causal language model in evaluation mode, on the CPU, with its base held as an adapter's card says.

    Args:
        directory: a Hugging Face model directory.
        dtype: `float32` or `bfloat16`, what it computes in.
        held: `none`, `nf4` (double quantisation) or `nf4-single`; embeddings, norms and the output head stay as they
            are.

    Raises:
        AdapterMismatch: this version cannot hold a base so.
    """
    if held == NONE:
        return load_model(directory, dtype)
    if held not in DOUBLE:
        raise AdapterMismatch(
            f"a base held as {held!r} cannot be rebuilt here", where=str(directory), do=f"use {', '.join(DOUBLE)}"
        )
    from graftline.stages.lm.nf4 import quantised

    model = load_model(directory, "auto")
    for name, layer in linear_layers(model):
        put(model, name, quantised(layer.weight, double=DOUBLE[held]), layer)
    return compute_in(model, dtype)


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Linear]]:
    """Every linear layer but the output head, with its name; they may be replaced on the way."""
    import torch

    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and module is not head:
            yield name, module


def put(model: PreTrainedModel, name: str, held: Any, layer: torch.nn.Linear) -> None:
    """Put what holds a layer's weight in the layer's place, with the layer's bias."""
    import torch

    if layer.bias is not None:
        held.bias = torch.nn.Parameter(layer.bias.detach(), requires_grad=False)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, held)


def compute_in(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """Have a model whose linear layers are held compute in this dtype: what is not quantised is cast."""
    import torch

    wanted = getattr(torch, dtype)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(wanted)
    for layer in model.modules():
        if hasattr(layer, "quant_state"):
            from graftline.stages.lm.nf4 import dequantise_to

            dequantise_to(layer, wanted)
    model.config.dtype = wanted
    return model.eval()


def held_of(adapter: Path) -> str:
    """How the base of an adapter directory is held; `none` where nothing says."""
    card = adapter / CARD
    if not card.is_file():
        return NONE
    return str(json.loads(card.read_text(encoding="utf-8")).get("base", {}).get("held", NONE))


def held_by_all(adapters: Mapping[str, str], *, where: str) -> str:
    """How the base of adapters that share an engine is held.

    Args:
        adapters: name → how its base is held.

    Raises:
        AdapterMismatch: not all alike.
    """
    first = {held: name for name, held in sorted(adapters.items(), reverse=True)}
    if len(first) > 1:
        listed = ", ".join(f"{name} ({held})" for held, name in sorted(first.items()))
        raise AdapterMismatch(
            f"were trained on bases held differently and cannot share an engine: {listed}",
            where=where,
            do='serve them apart, or all on the float base with held="none" (see each one\'s loss_on_float_base)',
        )
    return next(iter(first), NONE)
