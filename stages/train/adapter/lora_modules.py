"""PEFT's LoRA layer where nothing but the plain sum is asked of it: computed by our kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from graftline.kernels.lora_linear import lora_linear


class LoraLinear(Linear):
    """PEFT's layer in every respect but speed. With dropout, a merged or mixed adapter or another variant of LoRA, on a
    layer that trains itself, or in mixed number formats, it is PEFT's own."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight = None if args or kwargs else self._weight(x)
        if weight is None:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        (name,) = self.active_adapters
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return lora_linear(x, weight, self.get_base_layer().bias, a, b, self.scaling[name])

    def _weight(self, x: Tensor) -> Callable[[], Tensor] | None:
        """The frozen weight to multiply with; None where this is not the plain sum."""
        base = self.get_base_layer()
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return None
        (name,) = active
        dropout, weight = self.lora_dropout[name], base.weight
        if (self.training and not isinstance(dropout, nn.Identity)) or name in self.lora_variant:
            return None
        if self.lora_B[name].bias is not None or x.dtype != self.lora_A[name].weight.dtype:
            return None
        if type(base) is nn.Linear and weight.dtype == x.dtype and not _trains(base):
            return lambda: weight
        if hasattr(base, "quant_state"):
            from graftline.stages.lm.nf4 import Linear4bit, dequantised

            if type(base) is Linear4bit and not _trains(base):
                return lambda: dequantised(base, x.dtype)
        return None


def _trains(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


REPLACED: dict[type[nn.Module], type[nn.Module]] = {torch.nn.Linear: LoraLinear}
"""What PEFT's configuration is told to build instead of its own."""
