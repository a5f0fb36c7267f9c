"""Half fine-tuning: a random half of each layer trains."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from graftline.stages.rows import derived_seed
from graftline.stages.specification import Added, Paper
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
    sequence), give each its own number. Whether the paper draws again within a round is unconfirmed (its figure says
    once a stage, a summary of it says every epoch): `redraw` says. All that may train then takes memory as in `Full`.

    Args:
        round: which draw.
        redraw: when another half is drawn: never within a round (`stage`), every pass over the rows (`epoch`), or every
            so many steps. A matrix that trains again starts with fresh moments.
        head_and_embeddings: whether what lies outside the layers (embeddings, last norm, head) trains too.

    Property tested: each kind's trained share is within a matrix of half; what is frozen keeps its bits and has no
    optimizer state, and so does what rests for an epoch; draws depend on seed and round alone, and together reach
    everything; killed between two draws and resumed, it ends with the same bits.
    """

    method = "adapter.hft"
    origin = ""
    papers = (Paper("HFT: Half Fine-Tuning for Large Language Models"),)

    round: Annotated[int, Field(ge=0)] = 0
    redraw: Annotated[Literal["stage", "epoch"] | Annotated[int, Field(ge=1)], Added] = "stage"
    head_and_embeddings: bool = True

    def attach(self, model: PreTrainedModel, factors: Mapping[str, Any], seed: int) -> Attached:
        return AttachedHalf(model, self, seed)

    def draw(self, model: nn.Module, seed: int, number: int = 0) -> set[str]:
        """Names of the modules whose own parameters train after so many redraws."""
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
        generator = np.random.Generator(np.random.PCG64(derived_seed(seed, f"round {self.round}", number)))
        for _, layers in sorted(kinds.items()):
            rounded_up = set(generator.permutation(sorted(layers))[: len(layers) // 2].tolist())
            for layer, names in sorted(layers.items()):
                half = (len(names) + (layer in rounded_up)) // 2
                chosen |= set(generator.permutation(sorted(names))[:half].tolist())
        return chosen


class AttachedHalf(AttachedFull):
    """A model some of whose parameters train."""

    def __init__(self, model: PreTrainedModel, plug: Hft, seed: int) -> None:
        self.plug, self.seed, self.draws = plug, seed, 0
        self._drawn: dict[int, frozenset[str]] = {}
        self._names = {name: name.rpartition(".")[0] for name, _ in model.named_parameters()}
        super().__init__(model, {})
        again = plug.redraw != "stage"
        for name, each in model.named_parameters():
            may = name in self.drawn(0) or (again and (plug.head_and_embeddings or bool(IN_LAYER.match(name))))
            each.requires_grad_(may)
            if may:
                self.parameters[name] = each

    def drawn(self, number: int) -> frozenset[str]:
        """Names of the parameters that train after so many redraws."""
        if number not in self._drawn:
            modules = self.plug.draw(self.model, self.seed, number)
            self._drawn[number] = frozenset(name for name, module in self._names.items() if module in modules)
        return self._drawn[number]

    def trains(self, step: int, epoch: int) -> Collection[str] | None:
        if self.plug.redraw == "stage":
            return None
        number = step // (epoch if self.plug.redraw == "epoch" else self.plug.redraw)
        self.draws = max(self.draws, number)
        return self.drawn(number)

    def export(self, out: Path, masters: Mapping[str, Tensor], source: Path, base: str) -> dict[str, Any]:
        about = super().export(out, masters, source, base)
        drawn = [sorted(self.drawn(number)) for number in range(self.draws + 1)]
        said = {"trained": drawn[0]} if self.plug.redraw == "stage" else {"redraw": self.plug.redraw, "trained": drawn}
        return {**about, "class": "Hft", "round": self.plug.round, **said}
