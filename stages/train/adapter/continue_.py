"""Training goes on, on an adapter that there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from graftline.stages.errors import AdapterMismatch
from graftline.stages.train.adapter.lora import AttachedPeft, Lora, in_dtype
from graftline.stages.train.plugs import Adapter, Attached

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Continue(Adapter):
    """Goes on training the adapter that is `Train.model`: its weights are the start; its rank, scale and layers stay;
    its base is the one it was trained on, held as its card says (`Train.base` stays out). The optimizer starts anew.
    A reference policy is the adapter as it started here, which is never the base.

    Takes what is a plain LoRA: `Lora`'s, also rank-stabilised, what `Pissa` exported, a `merge.Concat`. Rows that any
    training of the chain saw cannot be held out.

    Args:
        dropout: share of a layer's inputs to A set to 0 in training. Slow on a CPU.

    Raises:
        InvalidField: `Train.model` is no adapter, or `Train.base` is given.
        AdapterMismatch: the adapter was made for another base, or is no plain LoRA.

    Property tested: two halves of a training are one, where the optimizer keeps nothing between them; no step leaves
    the adapter's digest as it was; after supervised training DPO starts at log 2.
    """

    method = "adapter.continue"
    origin = "going on from a checkpoint of the weights, as everybody does"
    starts_from = "adapter"

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def go_on(self, model: PreTrainedModel, begun: Path) -> Attached:
        from peft import LoraConfig, PeftModel
        from safetensors.torch import load_file

        from graftline.stages.lm.adapters import factors_of
        from graftline.stages.train.adapter.lora_modules import REPLACED, share_inputs

        self._refuse_what_is_not_there(model, begun, set(factors_of(begun)))
        config = LoraConfig.from_pretrained(str(begun))
        config.lora_dropout = self.dropout
        config._register_custom_module(REPLACED)
        wrapped = PeftModel.from_pretrained(
            model, str(begun), config=config, is_trainable=True, autocast_adapter_dtype=False
        )
        share_inputs(wrapped)
        tensors = load_file(begun / "adapter_model.safetensors")
        exact = {f"{name.removesuffix('.weight')}.default.weight": each for name, each in tensors.items()}
        return AttachedPeft(in_dtype(wrapped, model.dtype), self, exact)

    def reopen(self, exported: Path, base: Path, dtype: str, held: str = "none") -> PreTrainedModel:
        return Lora().reopen(exported, base, dtype, held)

    @staticmethod
    def _refuse_what_is_not_there(model: PreTrainedModel, begun: Path, layers: set[str]) -> None:
        """PEFT would leave out what it finds no layer for, and train a part of the adapter."""
        from graftline.stages.lm.held import linear_layers

        if unknown := sorted(layers - {name for name, _ in linear_layers(model)}):
            raise AdapterMismatch(
                f"changes {unknown[0]}, which is no linear layer of this base, or its output head",
                where=str(begun),
                do="use the base it was trained on",
            )
