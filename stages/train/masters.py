"""The fp32 copies of what trains, which alone add up small updates, and the way between them and the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graftline.stages.train.collectives import Ranks
from graftline.stages.train.plugs import Attached


def masters_of(attached: Attached) -> dict[str, Tensor]:
    """Name → fp32 parameter: the model's own where it is fp32, else a copy, which alone adds up small updates."""
    return {
        name: parameter
        if parameter.dtype == torch.float32
        else attached.exact.get(name, parameter.detach()).float().clone().requires_grad_(True)
        for name, parameter in attached.parameters.items()
    }


def collect_gradients(attached: Attached, masters: Mapping[str, Tensor]) -> None:
    """Add a bin's gradients to the masters'; where the master is the parameter, autograd has done it."""
    for name, parameter in attached.parameters.items():
        master = masters[name]
        if parameter is not master and parameter.grad is not None:
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None


def average_gradients(masters: Mapping[str, Tensor], trained: set[str], ranks: Ranks) -> None:
    """Sum the gradients over the ranks (each is already divided by the whole batch's weight). A trained parameter that
    no row of this rank reached counts as zero; one that does not train now has none."""
    gradients = []
    for name, master in masters.items():
        if name not in trained:
            master.grad = None
            continue
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        gradients.append(master.grad)
    ranks.sum(gradients)


def publish(attached: Attached, masters: Mapping[str, Tensor]) -> None:
    """Copy the masters into the model, in its number format."""
    with torch.no_grad():
        for name, parameter in attached.parameters.items():
            if parameter is not masters[name]:
                parameter.copy_(masters[name])
