"""A base as it is held: as it was loaded, or with its linear layers quantised.

An adapter's `graftline.json` says how the base it belongs to is held, and whoever puts the adapter on a base (an
engine, a merge, a measurement) rebuilds that base with `load_held`: the same bytes, whatever dtype it computes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import AdapterMismatch
from graftline.stages.lm.load import CARD, load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NONE = "none"
FORM = re.compile(r"(nf4|nf4-single)(?:\+([1-9]\d*)(?:\(([\w.,]+)\))?)?")
"""How a base can be held beside `none`: `nf4` is double quantisation; `nf4+8` keeps each layer's principal part of rank
8 in float beside the quantised rest, `nf4+8(q_proj,v_proj)` those of some layers."""


def with_principal(held: str, rank: int, targets: Sequence[str] = ()) -> str:
    """How a base is held that keeps the principal part of these layers (all, where none is named) in float."""
    return f"{held}+{rank}" + (f"({','.join(sorted(targets))})" if targets else "")


def is_named(layer: str, targets: Sequence[str]) -> bool:
    """Whether a layer is one of those named, in full or by its ending, as PEFT reads such names."""
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def load_held(directory: Path, dtype: str, held: str = NONE) -> PreTrainedModel:
    """A causal language model in evaluation mode, on the CPU, with its base held as an adapter's card says.

    Args:
        directory: a Hugging Face model directory.
        dtype: `float32` or `bfloat16`, what it computes in.
        held: `none`, `nf4` (double quantisation) or `nf4-single`, both with `+8` for a principal part of rank 8 in
            float; embeddings, norms and the output head stay as they are.

    Raises:
        AdapterMismatch: this version cannot hold a base so.
    """
    if held == NONE:
        return load_model(directory, dtype)
    form = FORM.fullmatch(held)
    if form is None:
        raise AdapterMismatch(f"a base held as {held!r} cannot be rebuilt here", where=str(directory), do="use nf4")
    from graftline.stages.lm.nf4 import quantised
    from graftline.stages.lm.principal import principal

    double, rank, targets = form[1] == "nf4", int(form[2] or 0), form[3].split(",") if form[3] else []
    model = load_model(directory, "auto")
    for name, layer in linear_layers(model):
        keeps = rank and (not targets or is_named(name, targets))
        kept = principal(name, layer.weight.detach(), rank) if keeps else None
        put(model, name, quantised(layer.weight, double=double, principal=kept), layer)
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
