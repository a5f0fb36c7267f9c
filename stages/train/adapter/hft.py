"""Half fine-tuning: a random half of each layer trains."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.rows import derived_seed
from graftline.stages.specification import Paper
from graftline.stages.train.adapter.full import AttachedFull, Full
from graftline.stages.train.plugs import Attached

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

IN_LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<rest>.+)$")


class Hft(Full):
    """Full fine-tuning of a random half: in every layer, of its attention's matrices, of its MLP's, and of its norms,
    half train and the rest stay as they are, which forgets less. Where the half is not a whole number (3 matrices), a
    random half of the layers rounds up and the others down. Makes a model; wants `Full`'s learning rate.

    The draw depends on `Train.seed` and `round`; a round is one `Train`. Of several in a row (the tasks of a continual
    sequence), give each its own number.

    Args:
        round: which draw.
        head_and_embeddings: whether what lies outside the layers (embeddings, last norm, head) trains too.

    Property tested: each kind's trained share is within a matrix of half; what is frozen keeps its bits and has no
    optimizer state; draws depend on seed and round alone, and together reach everything.
    """

    method = "adapter.hft"
    origin = ""
    papers = (Paper("HFT: Half Fine-Tuning for Large Language Models"),)

    round: Annotated[int, Field(ge=0)] = 0
    head_and_embeddings: bool = True

    def attach(self, model: PreTrainedModel, factors: Mapping[str, Any], seed: int) -> Attached:
        chosen = self.draw(model, seed)
        model.requires_grad_(False)
        parameters = {name: each for name, each in model.named_parameters() if name.rpartition(".")[0] in chosen}
        for each in parameters.values():
            each.requires_grad_(True)
        return AttachedHalf(model, parameters, self)

    def draw(self, model: nn.Module, seed: int) -> set[str]:
        """Names of the modules whose own parameters train."""
        import numpy as np

        kinds: dict[str, dict[str, list[str]]] = {}
        chosen = set()
        for name, module in model.named_modules():
            own = list(module.parameters(recurse=False))
            found = IN_LAYER.match(name)
            if own and found:
                vectors = all(each.ndim < 2 for each in own)
                kind = "norms" if vectors else found["rest"].rpartition(".")[0]
                layer = f"{found['stack']}.{found['layer']}"
                kinds.setdefault(f"{found['stack']} {kind}", {}).setdefault(layer, []).append(name)
            elif own and self.head_and_embeddings:
                chosen.add(name)
        generator = np.random.Generator(np.random.PCG64(derived_seed(seed, f"round {self.round}")))
        for _, layers in sorted(kinds.items()):
            rounded_up = set(generator.permutation(sorted(layers))[: len(layers) // 2].tolist())
            for layer, names in sorted(layers.items()):
                half = (len(names) + (layer in rounded_up)) // 2
                chosen |= set(generator.permutation(sorted(names))[:half].tolist())
        return chosen


class AttachedHalf(AttachedFull):
    """A model some of whose parameters train."""

    def __init__(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter], plug: Hft) -> None:
        super().__init__(model, parameters)
        self.plug = plug

    def export(self, out: Path, masters: Mapping[str, Tensor], source: Path, base: str) -> dict[str, Any]:
        about = super().export(out, masters, source, base)
        return {**about, "class": "Hft", "round": self.plug.round, "trained": sorted(masters)}
