"""AdamW with its state in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.train.optimizer.adamw import AdamW, BoundAdamW
from graftline.stages.train.plugs import Bound

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class AdamW8bit(AdamW):
    """AdamW whose two running means are kept as 8-bit codes with a scale for every 256 numbers: 2 bytes of state a
    parameter instead of 8. Through bitsandbytes, on a CPU or a GPU; the parameters themselves stay in fp32. For `Full`
    and `Hft`; the factors of a LoRA are too small to gain from it.

    Args:
        min_8bit_size: numbers below which a tensor's state stays in fp32.
        lr, betas, eps, weight_decay, warmup, schedule, clip: as of `AdamW`.

    Property tested: the first step is the closed form; 50 steps stay near AdamW's; its state takes less than a third of
    AdamW's; what is excluded does not decay; a resumed run is the same to the bit.
    """

    method = "optimizer.adamw8bit"
    origin = "8-bit optimizers by block-wise quantisation (Dettmers and others); the update rule is bitsandbytes'"

    min_8bit_size: Annotated[int, Field(ge=1)] = 4096

    def bind(self, masters: Mapping[str, Tensor], steps: int) -> Bound:
        return BoundAdamW8bit(self, masters, steps)


class BoundAdamW8bit(BoundAdamW):
    """bitsandbytes' AdamW8bit on named parameters."""

    plug: AdamW8bit

    def made(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from bitsandbytes.optim import AdamW8bit as Blockwise

        plug = self.plug
        made: torch.optim.Optimizer = Blockwise(
            groups, lr=plug.lr, betas=plug.betas, eps=plug.eps, min_8bit_size=plug.min_8bit_size
        )
        return made

    def state(self) -> dict[str, Tensor]:
        import torch

        # The code books are the same for all tensors and made anew; steps are counted in plain numbers.
        return {
            f"{kind}/{name}": torch.tensor(value) if kind == "step" else value
            for name, parameter in self.masters.items()
            for kind, value in self.adamw.state.get(parameter, {}).items()
            if not kind.startswith("qmap")
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        made: Any = self.adamw
        made.fill_qmap()
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            parameter = self.masters[name]
            own = made.state[parameter]
            own[kind] = int(tensor) if kind == "step" else tensor.to(parameter.device).clone()
            if kind == "absmax1":
                own["qmap1"], own["qmap2"] = (
                    made.name2qmap[each].to(parameter.device) for each in ("dynamic", "udynamic")
                )
