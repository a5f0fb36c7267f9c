"""Adapters side by side in one: their exact weighted sum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.errors import AdapterMismatch, InvalidField, WrongKind
from graftline.stages.lm.reference import base_of, refuse_endpoint, refuse_other_bases
from graftline.stages.specification import Paper
from graftline.stages.stage import Adapter, Context, Model, Stage

if TYPE_CHECKING:
    import torch

    from graftline.kernels.grouped_lora import Factors
    from graftline.stages.artefact import Artefact


class Concat(Stage):
    """FLoRA's stacking: one adapter whose ΔW is the weighted sum Σ wₖ·sₖ·BₖAₖ, exactly, because the factors are laid
    side by side: A = [w₁s₁A₁; w₂s₂A₂; …], B = [B₁ B₂ …]. Ranks may differ, and add up.

    Averaging the A's and the B's by themselves, as federated averaging and PEFT's `linear` do, brings in products of
    one adapter's A with another's B, and is off by as much as the sum itself. Weights and scales are folded into A
    alone, in fp32; the result's own scale is 1. Nothing is drawn.

    Args:
        model: the base.
        adapters: name → LoRA adapter of that base, at least one.
        weights: name → weight, any number, 1 where a name is left out (None: each adapter's share of all rows trained
            on, as FLoRA weights its clients; to add skills of different tasks, use `{}`).

    Raises:
        AdapterMismatch: adapters of several bases or tokenizers, on bases held differently, or not plain LoRA.

    Property tested: ΔW is the weighted sum to 1e-6; the rank is the sum of ranks; an order or a name changes nothing.
    """

    method = "merge.flora_stacking"
    papers = (Paper("FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations"),)
    makes = "adapter"
    specimen: ClassVar[Mapping[str, Any]] = {"weights": {"score": 0.5}}

    model: Model
    adapters: Annotated[Mapping[str, Adapter], Field(min_length=1)]
    weights: Mapping[str, float] | None = None

    def check(self) -> None:
        if self.model.kind != "model":
            raise WrongKind(
                f"takes a model, {self.model.name} makes {self.model.kind}",
                where="Concat.model",
                do="name the base here and the adapters in adapters=",
            )
        if unknown := sorted(set(self.weights or ()) - set(self.adapters)):
            raise InvalidField(
                f"there is no adapter {unknown[0]!r}", where="Concat.weights", do=f"use {', '.join(self.adapters)}"
            )
        refuse_endpoint(self.model, where="Concat.model", why="its weights are not here")
        refuse_other_bases(self.model, self.adapters, where="Concat.adapters")

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        from graftline.stages.lm.adapters import factors_of
        from graftline.stages.merge.parents import card_of, parent, refuse_strangers, write_trained_on
        from graftline.stages.train.export import adapter_digest, write_card

        model, adapters = inputs["model"], inputs["adapters"]
        refuse_strangers(context, model, self.adapters, adapters, where=f"{self.name}.adapters")
        weights = self._weights(adapters)
        parts = [(weights[name], factors_of(adapters[name].directory("adapter"))) for name in self._order(adapters)]
        stacked = stack(parts)
        folder = out / "adapter"
        folder.mkdir(parents=True)
        base = base_of(self.model)
        write_peft(stacked, folder, str(getattr(base, "model", base.name)))
        rank = max(a.shape[0] for a, _ in stacked.values())
        digest = adapter_digest(folder)
        about = {
            "class": "Concat",
            "rank": rank,
            "formula": "sum of weight·s·B·A",
            "parents": {name: parent(made, weights[name]) for name, made in sorted(adapters.items())},
            "adapter_digest": digest,
        }
        write_card(folder, card_of(next(iter(adapters.values())))["base"], about)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes files that are their owner's alone
        write_trained_on((model, *adapters.values()), out)
        rows = [made.metrics.get("rows") for made in adapters.values()]
        counted = {"rows": sum(rows)} if all(isinstance(count, int) for count in rows) else {}
        return {"rank": rank, "layers": len(stacked), "adapter_digest": digest, **counted}

    def _weights(self, adapters: Mapping[str, Artefact]) -> dict[str, float]:
        if self.weights is not None:
            return {name: self.weights.get(name, 1.0) for name in adapters}
        rows = {name: int(made.metrics.get("rows") or 0) for name, made in adapters.items()}
        if unknown := sorted(name for name, count in rows.items() if not count):
            raise InvalidField(
                f"{unknown[0]} does not say how many rows it was trained on", where=f"{self.name}.weights",
                do="give the weights (`{}`: each 1)",
            )  # fmt: skip
        return {name: count / sum(rows.values()) for name, count in rows.items()}

    @staticmethod
    def _order(adapters: Mapping[str, Artefact]) -> list[str]:
        """By content, so that the same adapters under other names make the same file."""
        return sorted(adapters, key=lambda name: (adapters[name].digest, name))


def stack(parts: list[tuple[float, dict[str, Factors]]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer → A and B, whose product is the weighted sum of the parts' updates of that layer."""
    import torch

    stacked = {}
    for path in sorted({path for _, factors in parts for path in factors}):
        mine = [(weight, factors[path]) for weight, factors in parts if path in factors]
        shapes = {(own.b.shape[0], own.a.shape[1]) for _, own in mine}
        if len(shapes) > 1:
            raise AdapterMismatch(f"the adapters' updates of {path} have the shapes {sorted(shapes)}", where="Concat")
        a = torch.cat([weight * own.scale * own.a.float() for weight, own in mine])
        stacked[path] = (a.contiguous(), torch.cat([own.b.float() for _, own in mine], dim=1).contiguous())
    return stacked


def write_peft(stacked: Mapping[str, tuple[torch.Tensor, torch.Tensor]], folder: Path, base: str) -> None:
    """A PEFT directory in which every layer has the scale 1: alpha is the rank, layer by layer where they differ."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    tensors = {}
    for path, (a, b) in stacked.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    ranks = {path: a.shape[0] for path, (a, _) in stacked.items()}
    most = max(ranks.values())
    other = {path.replace(".", r"\."): rank for path, rank in ranks.items() if rank != most}
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        target_modules=sorted(ranks),  # in full: a last name alone could name a layer no parent has
        rank_pattern=other,
        alpha_pattern=other,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base,
    )
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    (folder / "adapter_config.json").write_text(f"{json.dumps(plain, indent=2, sort_keys=True)}\n", encoding="utf-8")
