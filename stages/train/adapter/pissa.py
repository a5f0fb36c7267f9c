"""Low-rank adaptation of a weight's principal part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.lm.held import NONE, is_named, with_principal
from graftline.stages.specification import Paper
from graftline.stages.train.adapter.lora import AttachedPeft, Lora
from graftline.stages.train.plugs import Adapter, Attached, Base

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Pissa(Adapter):
    """LoRA that starts from the weight's principal part: BA is its r largest singular components (alpha = r), and the
    frozen base holds the residual W − BA. On a quantised base only the residual is quantised, which loses less.

    What is exported is a plain LoRA of rank 2r, BA − B₀A₀, on the pristine base: where that was float, as it is; where
    it was quantised, with B₀A₀ in float beside the quantised residual (`held: nf4+8`), for that is what was trained.
    PEFT alone, which knows no such base, puts it on the float one; `loss_on_float_base` says how far off that is. Wants
    a smaller learning rate than LoRA, swept by itself.

    Args:
        rank: r, singular components that train: half the exported rank.
        dropout: share of a layer's inputs to A set to 0 in training. Slow on a CPU.
        targets: `all-linear` (all but the output head), or the layers' names, such as `("q_proj", "v_proj")`.

    Raises:
        InvalidField: a target is no linear layer of the model, or has fewer than `rank` singular values.

    Property tested: the base's logits at the start on a float base, and residual + BA = W; on NF4
    ‖W − Q(residual) − BA‖ < ‖W − Q(W)‖; the export has the tuned logits on a pristine base held as its card says.
    """

    method = "adapter.pissa"
    papers = (Paper("PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models"),)

    rank: Annotated[int, Field(ge=1)] = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    def check(self) -> None:
        if not self.targets:
            raise InvalidField("names no layer", where="Pissa.targets", do='use "all-linear" or layer names')

    @property
    def lora(self) -> Lora:
        """The LoRA that it is, but for its start."""
        return Lora(rank=self.rank, alpha=float(self.rank), dropout=self.dropout, targets=self.targets)

    def valid_on(self, base: Base) -> str:
        targets = () if isinstance(self.targets, str) else self.targets
        return NONE if base.held == NONE else with_principal(base.held, self.rank, targets)

    def split(self, name: str, weight: Tensor) -> tuple[Tensor, Any]:
        if not isinstance(self.targets, str) and not is_named(name, self.targets):
            return weight, None
        if self.rank > min(weight.shape):
            raise InvalidField(
                f"{name} is {tuple(weight.shape)}, which has no {self.rank} singular values",
                where="Pissa.rank",
                do=f"use at most {min(weight.shape)}",
            )
        from graftline.stages.lm.principal import principal

        a, b = principal(name, weight, self.rank)
        return (weight.float() - b @ a).to(weight.dtype), (a, b)

    def attach(self, model: PreTrainedModel, factors: Mapping[str, Any], seed: int) -> Attached:
        import torch

        wrapped = self.lora.wrapped(model, seed)
        made = AttachedPissa(wrapped, self, factors)
        with torch.no_grad():
            for name, (a, b) in factors.items():
                made.parameters[f"base_model.model.{name}.lora_A.default.weight"].copy_(a)
                made.parameters[f"base_model.model.{name}.lora_B.default.weight"].copy_(b)
        return made

    def reopen(self, exported: Path, base: Path, dtype: str, held: str = "none") -> PreTrainedModel:
        return self.lora.reopen(exported, base, dtype, held)


class AttachedPissa(AttachedPeft):
    """A PEFT LoRA beside residual weights.

    Args:
        start: layer → A₀ and B₀, as it started.
    """

    def __init__(self, wrapped: Any, plug: Pissa, start: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(wrapped, plug)
        self.start = start

    def on_pristine_base(
        self, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """BA − B₀A₀ as one product: A over A₀, and B beside −B₀."""
        import torch

        both = {}
        for key, tensor in tensors.items():
            layer, _, part = key.removeprefix("base_model.model.").partition(".lora_")
            a, b = self.start[layer]
            halves, dim = ([tensor, a], 0) if part == "A.weight" else ([tensor, -b], 1)
            both[key] = torch.cat([each.detach().cpu() for each in halves], dim)
        return both, config | {"r": 2 * config["r"], "lora_alpha": 2 * config["r"]}
