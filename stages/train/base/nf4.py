"""The base quantised to four bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftline.stages.specification import Paper
from graftline.stages.train.plugs import Base

if TYPE_CHECKING:
    from torch import Tensor

    from graftline.stages.lm.nf4 import Nf4Linear


class Nf4(Base):
    """QLoRA's base: every linear layer but the output head in NF4 (blocks of 64, 16 levels), through bitsandbytes;
    dequantised to the run's dtype at every pass. Embeddings, norms and the head stay as they are. It saves memory
    (4.13 bits a weight) and costs some speed. Adapters only: a quantised weight has no gradient.

    Args:
        double: quantise the blocks' largest values, too (256 to a block, 8 bits): 0.37 bits a weight less.

    Property tested: a layer's output is x·dequantise(W)ᵀ; the packed bytes are the same after training, whatever dtype
    it computes in; gradients are the same before and after an evaluation.
    """

    method = "base.nf4"
    papers = (Paper("QLoRA: Efficient Finetuning of Quantized LLMs"),)

    double: bool = True

    @property
    def held(self) -> str:
        return "nf4" if self.double else "nf4-single"

    def hold(self, name: str, weight: Tensor) -> Nf4Linear:
        from graftline.stages.lm.nf4 import quantised

        return quantised(weight, double=self.double)
