"""Low-rank adaptation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from graftline.stages.errors import AdapterMismatch, InvalidField
from graftline.stages.lm.held import is_named
from graftline.stages.specification import Added, Paper
from graftline.stages.train.plugs import Adapter, Attached

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")
"""A module's layer, as PEFT finds it."""


class Lora(Adapter):
    """LoRA: every targeted linear layer gets y = W₀x + s·B(A·drop(x)), with B = 0 at the start and W₀ frozen; through
    PEFT, and exported as a PEFT directory.

    Args:
        rank: r, rows of A.
        alpha: s = alpha/r (None: 2·rank, so that s = 2 whatever the rank).
        dropout: share of a layer's inputs to A set to 0 in training. Slow on a CPU.
        targets: `all-linear` (all but the output head), or the layers' names, such as `("q_proj", "v_proj")`.
        rank_stabilised: s = alpha/√r, for ranks of 64 and more.
        upper: the last so many layers of the model train, and no other (None: all): nothing flows back below them, and
            `Sft(cached_prefix=True)` computes what is below once.

    Raises:
        InvalidField: a target is no linear layer of the model, or of the upper ones; the model has fewer layers.

    Property tested: the base's logits at the start; first grad(A) = 0, grad(B) ≠ 0; rank(ΔW) ≤ r; merged = unmerged;
    doubling r at fixed alpha halves s (÷√2 when rank-stabilised); below the upper layers nothing has a graph.
    """

    method = "adapter.lora"
    papers = (
        Paper("LoRA Learns Less and Forgets Less"),
        Paper("LoRA vs Full Fine-tuning: An Illusion of Equivalence"),
    )
    off_is_base = True
    identity_at_start = True

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rank_stabilised: bool = False
    upper: Annotated[Annotated[int, Field(ge=1)] | None, Added] = None

    @property
    def upper_layers(self) -> int | None:
        return self.upper

    def check(self) -> None:
        if not self.targets:
            raise InvalidField("names no layer", where="Lora.targets", do='use "all-linear" or layer names')

    def config(self, targets: str | list[str], numbers: list[int] | None = None) -> LoraConfig:
        """What PEFT is told: the layers' names, and their numbers where not all train."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            layers_to_transform=numbers,
            use_rslora=self.rank_stabilised,
            task_type="CAUSAL_LM",
        )

    def attach(self, model: PreTrainedModel, factors: Mapping[str, Any], seed: int) -> Attached:
        return AttachedPeft(self.wrapped(model, seed), self)

    def wrapped(self, model: PreTrainedModel, seed: int) -> PeftModel:
        """The model as PEFT wraps it, the same for the same seed."""
        import torch
        from peft import get_peft_model

        from graftline.stages.train.adapter.lora_modules import REPLACED, share_inputs

        config = self.config(self.layers(model), self.numbers(model))
        config._register_custom_module(REPLACED)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # The factors keep the base's number format, since PEFT's own cast of every activation to fp32 costs more
            # than the layer; the loop holds fp32 masters of them.
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
        share_inputs(wrapped)
        return in_dtype(wrapped, model.dtype)

    def layers(self, model: PreTrainedModel) -> str | list[str]:
        """The names of the targeted layers, as they end, so that the export reads alike for any depth."""
        import torch

        linear = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
        head = model.get_output_embeddings()
        endings = {name.rpartition(".")[2] for name, each in linear.items() if each is not head}
        if isinstance(self.targets, str):
            spared = {name.rpartition(".")[2] for name, each in linear.items() if each is head}
            # PEFT takes no numbers beside `all-linear`; the head, which has none, is then left out.
            return self.targets if endings & spared and self.upper is None else sorted(endings)
        numbers = self.numbers(model)
        for target in self.targets:
            named = [name for name in linear if is_named(name, [target])]
            if not named or (numbers is not None and not any(number_of(name) in numbers for name in named)):
                raise InvalidField(
                    f"{target!r} is no linear layer of the model{'' if numbers is None else ' that trains'}",
                    where="Lora.targets",
                    do=f"use some of {', '.join(sorted(endings))}",
                )
        return list(self.targets)

    def numbers(self, model: PreTrainedModel) -> list[int] | None:
        """The numbers of the layers that train (None: all)."""
        if self.upper is None:
            return None
        every = sorted({number for name, _ in model.named_modules() if (number := number_of(name)) is not None})
        if self.upper > len(every):
            raise InvalidField(
                f"the model has {len(every)} numbered layers", where="Lora.upper", do="use fewer, or leave it out"
            )
        return every[-self.upper :]

    def reopen(self, exported: Path, base: Path, dtype: str, held: str = "none") -> PreTrainedModel:
        from peft import PeftModel

        from graftline.stages.lm.held import load_held

        model = load_held(base, dtype, held)
        opened = PeftModel.from_pretrained(model, str(exported), autocast_adapter_dtype=False)
        return in_dtype(opened, model.dtype).get_base_model()


def number_of(name: str) -> int | None:
    """Which layer a module lies in, by its name."""
    found = LAYER.match(name)
    return None if found is None else int(found[1])


def in_dtype(wrapped: PeftModel, dtype: torch.dtype) -> PeftModel:
    """The factors in the base's number format, which PEFT cannot tell from a quantised weight."""
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return wrapped


class AttachedPeft(Attached):
    """A PEFT adapter on a model. The objective calls the model itself, whose layers PEFT has replaced."""

    def __init__(self, wrapped: PeftModel, plug: Adapter, exact: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(
            wrapped.get_base_model(),
            {name: each for name, each in wrapped.named_parameters() if each.requires_grad},
            exact,
        )
        self.wrapped, self.plug = wrapped, plug

    def export(self, out: Path, masters: Mapping[str, Tensor], source: Path, base: str) -> dict[str, Any]:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        tensors = get_peft_model_state_dict(self.wrapped, state_dict=dict(masters), save_embedding_layers=False)
        if len(tensors) != len(masters):
            raise AdapterMismatch(
                f"PEFT exports {len(tensors)} of {len(masters)} trained tensors",
                where=type(self.plug).__name__,
                do="report this",
            )
        tensors, config = self.on_pristine_base(tensors, self.wrapped.peft_config["default"].to_dict())
        folder = out / "adapter"
        folder.mkdir(parents=True)
        save_file(
            {name: each.detach().cpu().contiguous() for name, each in sorted(tensors.items())},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        # PEFT's own writer keeps the base's path on this machine, and sets in the hash seed's order.
        config |= {"base_model_name_or_path": base, "inference_mode": True}
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        text = json.dumps(plain, indent=2, sort_keys=True)
        (folder / "adapter_config.json").write_text(f"{text}\n", encoding="utf-8")
        return {"class": type(self.plug).__name__, "rank": plain["r"], "alpha": plain["lora_alpha"]}

    def on_pristine_base(
        self, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The trained tensors, under PEFT's names, and PEFT's config, as they are valid on the pristine base."""
        return tensors, config
