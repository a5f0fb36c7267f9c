"""AdamW with a larger learning rate for LoRA's B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.train.optimizer.adamw import AdamW
from graftline.stages.train.plugs import Adapter, Bound

if TYPE_CHECKING:
    from torch import Tensor


class LoraPlus(AdamW):
    """LoRA+: `lr` for A and everything else, `ratio`·lr for B, which starts at zero and at an equal rate learns too
    slowly in wide layers. The rest is `AdamW`'s; `lr` is A's, so take a smaller one than for `AdamW`.

    Args:
        ratio: of B's learning rate to A's (2 to 32; the larger, the harder the task).
        embedding_lr: learning rate of an embedding's factors.
        lr, betas, eps, weight_decay, warmup, schedule, clip: as of `AdamW`.

    Raises:
        InvalidField: an adapter without a B that starts at zero, for which the ratio has no reason.

    Property tested: a ratio of 1 is `AdamW` to the bit; every B and nothing else is fast, DoRA's magnitudes
    are not; the schedule moves both.
    """

    method = "optimizer.loraplus"
    origin = "LoRA+ (Hayou, Ghosh and Yu)"

    ratio: Annotated[float, Field(gt=0)] = 16.0
    embedding_lr: Annotated[float, Field(gt=0)] = 1e-6

    def suits(self, adapter: Adapter) -> None:
        if adapter.makes == "model" or not (adapter.identity_at_start and adapter.off_is_base):
            raise InvalidField(
                f"LoraPlus speeds up a factor B that starts at zero, and {type(adapter).__name__} has none",
                where="Train.optimizer",
                do="use AdamW, or adapter=Lora()",
            )

    def bind(self, masters: Mapping[str, Tensor], steps: int) -> Bound:
        factors = [name for name in masters if is_b(name)]
        if not factors:
            raise InvalidField("no parameter is called lora_B", where="Train.optimizer", do="use AdamW")
        if moved := [name for name in factors if masters[name].any()]:
            raise InvalidField(f"{moved[0]} does not start at zero", where="Train.optimizer", do="use AdamW")
        return super().bind(masters, steps)

    def scale(self, name: str) -> float:
        if "lora_embedding_" in name:
            return self.embedding_lr / self.lr
        return self.ratio if is_b(name) else 1.0


def is_b(name: str) -> bool:
    """Whether a parameter is the factor B of a linear layer."""
    return "lora_B" in name.split(".")
