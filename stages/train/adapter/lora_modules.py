"""PEFT's LoRA layer where nothing but the plain sum is asked of it: computed by our kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from graftline.kernels.lora_linear import LoraLayer, Weight, lora_linear

SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module which it gives the same input, as transformers names them."""


class LoraLinear(Linear):
    """PEFT's layer in every respect but speed. With dropout, a merged or mixed adapter or another variant of LoRA, on a
    layer that trains itself, or in mixed number formats, it is PEFT's own."""

    shared: SharedInput | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = not (args or kwargs)
        output = self.shared.output(self, x) if plain and self.shared is not None else None
        if output is None and plain and (layer := self.plain(x)) is not None:
            (output,) = lora_linear(x, (layer,))
        return super().forward(x, *args, **kwargs) if output is None else output

    def plain(self, x: Tensor) -> LoraLayer | None:
        """The layer as the kernel takes it; None where this is not the plain sum."""
        base = self.get_base_layer()
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return None
        (name,) = active
        a, b, dropout = self.lora_A[name].weight, self.lora_B[name], self.lora_dropout[name]
        if (self.training and not isinstance(dropout, nn.Identity)) or name in self.lora_variant:
            return None
        if b.bias is not None or x.dtype != a.dtype or _trains(base):
            return None
        weight = _weight(base, x.dtype)
        return None if weight is None else LoraLayer(weight, base.bias, a, b.weight, self.scaling[name])


class SharedInput:
    """Layers that a module gives the same input, one after the other: the first one asked computes for all, the others
    hand out what is theirs. Nothing outlives the module's own forward pass.

    Args:
        holder: the module.
        layers: of it.
    """

    def __init__(self, holder: nn.Module, layers: Sequence[LoraLinear]) -> None:
        self.layers = layers
        self.inside = False
        self.x: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}
        holder.register_forward_pre_hook(self._enter)
        holder.register_forward_hook(self._leave, always_call=True)
        for layer in layers:
            layer.shared = self

    def output(self, layer: LoraLinear, x: Tensor) -> Tensor | None:
        """The layer's output; None where it has to compute its own."""
        if not self.inside:
            return None
        if self.x is not x:
            plain = [each.plain(x) for each in self.layers]
            together = [each for each in plain if each is not None]
            if len(together) < len(plain):
                return None
            self.x, outputs = x, lora_linear(x, together)
            self.outputs = {id(each): output for each, output in zip(self.layers, outputs, strict=True)}
        return self.outputs.pop(id(layer), None)

    def _enter(self, *_: Any) -> None:
        self.inside = True

    def _leave(self, *_: Any) -> None:
        self.inside, self.x = False, None
        self.outputs.clear()


def share_inputs(model: nn.Module) -> None:
    """Have the layers that are given the same input compute together, wherever all of them carry an adapter."""
    for module in model.modules():
        for names in SHARING:
            layers = [getattr(module, name, None) for name in names]
            adapted = [each for each in layers if isinstance(each, LoraLinear)]
            if len(adapted) == len(names):
                SharedInput(module, adapted)


def _weight(base: nn.Module, dtype: torch.dtype) -> Weight | None:
    """What gives a frozen layer's weight; None for a kind of layer that the kernel does not know."""
    if hasattr(base, "quant_state"):
        from graftline.stages.lm.nf4 import Nf4Linear, dequantised

        return (lambda: dequantised(base, dtype)) if type(base) is Nf4Linear else None
    if type(base) is not nn.Linear or base.weight.dtype != dtype:
        return None
    weight = base.weight
    return lambda: weight


def _trains(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


REPLACED: dict[type[nn.Module], type[nn.Module]] = {torch.nn.Linear: LoraLinear}
"""What PEFT's configuration is told to build instead of its own."""
