"""From a model's directory to an adapter on a held base, ready for the loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.rows import derived_seed
from graftline.stages.train.plugs import Adapter, Attached, Base

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build(directory: Path, dtype: str, base: Base, adapter: Adapter, seed: int, device: str) -> Attached:
    """Load the base, let the adapter take its part of each linear layer, the base hold the rest, and attach."""
    from graftline.stages.lm.load import load_model

    model = load_model(directory, dtype)
    factors = hold(model, base, adapter)
    attached = adapter.attach(model, factors, derived_seed(seed, "adapter"))
    attached.model.to(device)
    return attached


def hold(model: PreTrainedModel, base: Base, adapter: Adapter) -> dict[str, Any]:
    """Split and hold every linear layer but the output head. Answers with what the adapter split off, by layer.

    The adapter sees the float weight first: one that starts from the weights' singular vectors could not find them in
    a quantised weight."""
    import torch

    head = model.get_output_embeddings()
    factors: dict[str, Any] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or module is head:
            continue
        weight, split_off = adapter.split(name, module.weight.detach())
        if split_off is not None:
            factors[name] = split_off
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
        held = base.hold(name, weight)
        if held is not None:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, held)
    return factors
