"""Full fine-tuning: every parameter trains, and what comes out is a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.train.plugs import Adapter, Attached

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

NOT_COPIED = (".", "model", "pytorch_model", "weights_digest", "config.")
"""What a base's directory holds that the trained model writes itself, or has no use for."""


class Full(Adapter):
    """Every parameter of the base trains. Makes a model (a Hugging Face directory) instead of an adapter; wants a
    learning rate ten times smaller than LoRA (`AdamW(lr=2e-5)`), and 16 bytes of memory a parameter.

    Property tested: all parameters move; the exported model has the trained one's logits.
    """

    method = "adapter.full"
    origin = "plain fine-tuning"
    makes = "model"
    identity_at_start = True

    def attach(self, model: PreTrainedModel, factors: Mapping[str, Any], seed: int) -> Attached:
        model.requires_grad_(True)
        return AttachedFull(model, dict(model.named_parameters()))

    def reopen(self, exported: Path, base: Path, dtype: str, held: str = "none") -> PreTrainedModel:
        from graftline.stages.lm.load import load_model

        return load_model(exported, dtype)


class AttachedFull(Attached):
    """A model all of whose parameters train."""

    def export(self, out: Path, masters: Mapping[str, Tensor], source: Path, base: str) -> dict[str, Any]:
        folder = out / "model"
        self.model.save_pretrained(folder)
        for file in sorted(source.iterdir()):  # the tokenizer, the chat template, the generation settings
            if file.is_file() and not file.name.startswith(NOT_COPIED):
                shutil.copy(file, folder / file.name)
        return {"class": "Full"}
