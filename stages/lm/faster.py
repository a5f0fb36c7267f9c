"""A loaded model computing the same with fewer passes over memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def faster(model: PreTrainedModel) -> None:
    """Have a model compute by our kernels where it is of a kind they fit; it stays as it is elsewhere."""
    from graftline.stages.lm.faster_modules import use_faster_modules
    from graftline.stages.lm.packed_attention import use_packed_attention

    use_packed_attention(model)
    use_faster_modules(model)
