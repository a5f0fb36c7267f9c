"""Folding an adapter into a model in memory, and measuring what that changes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from graftline.stages.errors import AdapterMismatch
from graftline.stages.lm.dequantised import load_dequantised

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

PROBES = 32
"""Sequences on which two models' logits are compared, at the last `POSITIONS` tokens of each."""
POSITIONS = 8


@dataclass
class Change:
    """What folding did to each layer: (‖ΔW‖, ‖W‖, ‖what bf16 rounds off the sum‖)."""

    layers: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def share(self, part: int, of: int) -> float:
        """One norm over all layers as a share of another (nan where that is 0)."""
        top, bottom = (math.sqrt(sum(each[index] ** 2 for each in self.layers.values())) for index in (part, of))
        return top / bottom if bottom else math.nan


def adapted(base: Path, adapter: Path, held: str) -> PeftModel:
    """The adapter, unmerged, on the base as `held` says, in fp32 and plain linear layers: PEFT's own merge into a
    4-bit layer quantises the sum again."""
    from peft import PeftModel

    model = load_dequantised(base, held)
    wrapped: PeftModel = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
    return wrapped.float().eval().requires_grad_(False)


def fold(wrapped: PeftModel, adapter: Path) -> tuple[PreTrainedModel, Change]:
    """W + ΔW in every layer, in place, layer by layer; all else the adapter carries (saved modules) is taken over.

    Raises:
        AdapterMismatch: the sum is not finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    change = Change()
    for name, module in wrapped.named_modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
            weight = module.get_base_layer().weight
            before = weight.detach().clone()
            try:
                module.merge(safe_merge=True)
            except ValueError as error:  # NaN
                raise AdapterMismatch(f"{name}: {error}", where=str(adapter), do="train it again") from error
            after = module.get_base_layer().weight.detach()
            rounded = after.bfloat16().float() - after
            norms = ((after - before).norm().item(), before.norm().item(), rounded.norm().item())
            change.layers[name.removeprefix("base_model.model.")] = norms
    with warnings.catch_warnings():  # PEFT says that these layers are merged
        warnings.simplefilter("ignore", UserWarning)
        model: PreTrainedModel = wrapped.merge_and_unload()
    return model, change


@torch.no_grad()
def last_logits(model: torch.nn.Module, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """[positions, vocabulary]: the logits of each sequence's last tokens, in fp32."""
    found = [
        model(input_ids=torch.tensor([list(ids)]), use_cache=False, logits_to_keep=POSITIONS).logits[0].float()
        for ids in sequences
    ]
    return torch.cat(found)


def apart(wanted: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """How far two models' logits are apart: the largest difference, and the mean Kullback-Leibler divergence."""
    p, q = wanted.log_softmax(-1), found.log_softmax(-1)
    divergence = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()
    return (wanted - found).abs().max().item(), max(0.0, divergence.item())
