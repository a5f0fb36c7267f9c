"""From a model's directory to an adapter on a held base, ready for the loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.rows import derived_seed
from graftline.stages.train.plugs import Adapter, Attached, Base

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build(
    directory: Path, dtype: str, base: Base, adapter: Adapter, seed: int, device: str, begun: Path | None = None
) -> Attached:
    """Load the base, let the adapter take its part of each linear layer, the base hold the rest, and attach.

    Args:
        begun: the directory of the adapter that training goes on from, whose base is held as its card says (None: it
            starts anew).

    Raises:
        AdapterMismatch: that adapter was made for another base.
    """
    from graftline.stages.lm.faster import faster
    from graftline.stages.lm.held import compute_in, held_of, load_held
    from graftline.stages.lm.load import load_model, model_digest, refuse_other_base

    if begun is not None:
        refuse_other_base(begun, model_digest(directory))
        model = load_held(directory, dtype, held_of(begun))
        faster(model)
        attached = adapter.go_on(model, begun)
        attached.model.to(device)
        return attached
    # What is quantised is quantised from the weights as they are stored, so that its bytes depend on no run's dtype.
    model = load_model(directory, dtype if base.held == "none" else "auto")
    factors = hold(model, base, adapter)
    if base.held != "none":
        compute_in(model, dtype)
    faster(model)
    attached = adapter.attach(model, factors, derived_seed(seed, "adapter"))
    attached.model.to(device)
    return attached


def hold(model: PreTrainedModel, base: Base, adapter: Adapter) -> dict[str, Any]:
    """Split and hold every linear layer but the output head. Answers with what the adapter split off, by layer.

    The adapter sees the float weight first: one that starts from the weights' singular vectors could not find them in
    a quantised weight."""
    import torch

    from graftline.stages.lm.held import linear_layers, put

    factors: dict[str, Any] = {}
    for name, layer in linear_layers(model):
        weight, split_off = adapter.split(name, layer.weight.detach())
        if split_off is not None:
            factors[name] = split_off
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        held = base.hold(name, weight)
        if held is not None:
            put(model, name, held, layer)
    return factors
