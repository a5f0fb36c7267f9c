"""Low-rank adaptation of a weight's principal part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.rows import derived_seed
from graftline.stages.specification import Paper
from graftline.stages.train.adapter.lora import AttachedPeft, Lora
from graftline.stages.train.plugs import Attached, Base

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel


class Pissa(Lora):
    """LoRA that starts from the weight's principal part: s·BA is its r largest singular components, and the frozen
    base holds the residual W − s·BA. On a quantised base only the residual is quantised, which loses less.

    What is exported is a plain LoRA of rank 2r, s·(BA − B₀A₀), on the pristine float base, even where the residual was
    held in NF4: neither base is then what was trained, but the float one is nearer by what quantising W itself loses.
    The artefact's loss as served says how far off it is. Needs a learning rate smaller than LoRA's, swept by itself.

    Args:
        rank: r, singular components that train (of the exported adapter: half its rank).
        alpha: s = alpha/r (None: the rank, so that s = 1).
        dropout: share of a layer's inputs to A set to 0 in training. Slow on a CPU.
        targets: `all-linear` (all but the output head), or the layers' names, such as `("q_proj", "v_proj")`.
        rank_stabilised: s = alpha/√r.
        iterations: power iterations of the randomised decomposition (None: the exact one, much slower).

    Raises:
        InvalidField: a target is no linear layer of the model, or has fewer than `rank` singular values.

    Property tested: the base's logits at the start on a float base, and residual + s·BA = W; on NF4
    ‖W − Q(residual) − s·BA‖ < ‖W − Q(W)‖; the export has the tuned logits on a pristine base.
    """

    method = "adapter.pissa"
    papers = (Paper("PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models"),)
    off_is_base = False

    iterations: Annotated[int | None, Field(ge=1)] = 16

    @property
    def scale(self) -> float:
        """s."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def valid_on(self, base: Base) -> str:
        return "none"

    def config(self, targets: str | list[str]) -> LoraConfig:
        config = super().config(targets)
        config.lora_alpha = self.rank if self.alpha is None else self.alpha
        return config

    def split(self, name: str, weight: Tensor) -> tuple[Tensor, Any]:
        if not self._targets(name):
            return weight, None
        if self.rank > min(weight.shape):
            raise InvalidField(
                f"{name} is {tuple(weight.shape)}, which has no {self.rank} singular values",
                where=f"{type(self).__name__}.rank",
                do=f"use at most {min(weight.shape)}",
            )
        import torch

        left, values, right = self._largest(name, weight.float())
        root = (values / self.scale).sqrt()
        # Rounded to bf16, and the residual taken after that: a run in any number format then starts from the same
        # factors, and trained and initial ones differ at export by what was trained, not by a rounding.
        b = (left * root).to(torch.bfloat16).float()
        a = (right * root).T.to(torch.bfloat16).float().contiguous()
        residual = (weight.float() - self.scale * (b @ a)).to(weight.dtype)
        return residual, Start(a, b)

    def attach(self, model: PreTrainedModel, factors: Mapping[str, Any], seed: int) -> Attached:
        import torch

        made = super().attach(model, factors, seed)
        assert isinstance(made, AttachedPeft)
        with torch.no_grad():
            for name, start in factors.items():
                made.parameters[f"base_model.model.{name}.lora_A.default.weight"].copy_(start.a)
                made.parameters[f"base_model.model.{name}.lora_B.default.weight"].copy_(start.b)
        return AttachedPissa(made, factors, self.scale)

    def _targets(self, name: str) -> bool:
        return isinstance(self.targets, str) or any(
            name == target or name.endswith(f".{target}") for target in self.targets
        )

    def _largest(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The largest singular values with their vectors: [out, r], [r], [in, r]."""
        import torch

        if self.iterations is None:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            return left[:, : self.rank], values[: self.rank], right[: self.rank].T
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(0, name))
            left, values, right = torch.svd_lowrank(weight, q=self.rank, niter=self.iterations)
        return left, values, right


@dataclass(frozen=True)
class Start:
    """What a layer's factors start from: `a` [r, in] and `b` [out, r], fp32."""

    a: Tensor
    b: Tensor


class AttachedPissa(AttachedPeft):
    """A PEFT LoRA beside residual weights."""

    def __init__(self, made: AttachedPeft, start: Mapping[str, Start], scale: float) -> None:
        super().__init__(made.wrapped, made.plug)
        self.start, self.scale = start, scale

    def on_pristine_base(
        self, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """s·(BA − B₀A₀) as one product: A over A₀, and B beside −B₀."""
        import torch

        both = {}
        for key, tensor in tensors.items():
            start = self.start[key.removeprefix("base_model.model.").partition(".lora_")[0]]
            down = ".lora_A." in key
            other = start.a if down else -start.b
            both[key] = torch.cat([tensor.detach().cpu(), other.cpu()], dim=0 if down else 1)
        rank = 2 * config["r"]
        alpha = self.scale * (math.sqrt(rank) if config["use_rslora"] else rank)
        return both, config | {"r": rank, "lora_alpha": alpha}
