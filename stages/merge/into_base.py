"""An adapter folded into its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from graftline.stages.errors import WrongKind
from graftline.stages.lm.reference import refuse_endpoint, refuse_other_bases
from graftline.stages.rows import Columns
from graftline.stages.stage import Adapter, Context, Model, Rows, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from graftline.stages.artefact import Artefact


class IntoBase(Stage):
    """Folds an adapter into its base: one dense model W + ΔW, which needs no adapter layer to serve.

    The sum is formed in fp32, layer by layer, and nothing is drawn. Of an adapter trained over 4-bit weights, the
    function that was trained is dequantise(quantise(W)) + ΔW: `exact` folds into that, so that the merged model has
    the unmerged one's logits; `original` folds into W itself, which is off by the quantisation error. Both are
    measured, whichever is kept: how far the logits are from the unmerged model's, and, with `held_out`, the losses.
    The merged weights are never quantised again: that would round an adapter of the usual size away.

    Args:
        model: the base.
        adapter: an adapter of that base; several at once: `merge.Concat` them first.
        onto: `exact` (the base as training held it) or `original` (the base as it is).
        held_out: rows on which the losses are measured (None: no losses).
        dtype: number format of the merged weights. bf16 rounds off a large share of a small ΔW; `lost_in_bf16` says
            how large (as a share of ‖ΔW‖), for an engine that computes in bf16 rounds the same.
        max_length: tokens of a held-out row; longer ones are left out.

    Raises:
        AdapterMismatch: the adapter was made on another base or tokenizer, or its base was held as nothing here knows.
        HeldOutLeak: a held-out row was trained on.

    Property tested: `exact` in fp32 has the unmerged model's logits to 1e-4; an adapter that is zero leaves
    dequantise(quantise(W)) to the bit.
    """

    method = "merge.lora_into_quantized_base"
    origin = "the arithmetic of LoRA, W + s·BA; no paper"
    makes = "model"
    whole_node = True

    model: Model
    adapter: Adapter
    onto: Literal["exact", "original"] = "exact"
    held_out: Rows | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_length: Annotated[int, Field(ge=2)] = 1024

    def check(self) -> None:
        if self.model.kind != "model":
            raise WrongKind(
                f"takes a model, {self.model.name} makes {self.model.kind}",
                where="IntoBase.model",
                do="name the base here and the adapter in adapter=",
            )
        refuse_endpoint(self.model, where="IntoBase.model", why="its weights are not here")
        refuse_other_bases(self.model, {"adapter": self.adapter}, where="IntoBase")

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"held_out": {"messages": "messages"}}

    def expand(self) -> Mapping[str, Stage]:
        from graftline.stages.train.tokenised import Tokenised

        if self.held_out is None:
            return {}
        return {"prepared": Tokenised(rows=self.held_out, model=self.model, max_length=self.max_length)}

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        import torch

        from graftline.stages.lineage import refuse_leak
        from graftline.stages.lm.load import model_digest
        from graftline.stages.merge.parents import card_of, parent, refuse_strangers, write_trained_on

        torch.set_num_threads(context.resources.threads or 1)
        model, adapter = inputs["model"], inputs["adapter"]
        refuse_strangers(context, model, {"adapter": self.adapter}, {"adapter": adapter}, where=self.name)
        write_trained_on((model, adapter), out)
        if self.held_out is not None and (out / "trained_on.parquet").exists():
            import pyarrow.parquet as pq

            refuse_leak(pq.read_table(out / "trained_on.parquet"), inputs["prepared"].rows(), where=self.name)
        card = card_of(adapter)
        folder = out / "model"
        measured, layers = self._fold(context, model, adapter, card["base"], inputs.get("prepared"), folder)
        for file in model.directory("model").iterdir():  # the tokenizer, the chat template, the generation settings
            if file.is_file() and not file.name.startswith(NOT_COPIED):
                shutil.copy(file, folder / file.name)
        about = {
            "class": "IntoBase",
            "formula": f"{'dequantise(quantise(W))' if self._quantised(card) else 'W'} + s·B·A",
            "parents": {"model": {"digest": model.digest}, "adapter": parent(adapter, 1.0)},
        }
        text = json.dumps({"base": card["base"], **about}, indent=2, sort_keys=True)
        (folder / "graftline.json").write_text(f"{text}\n", encoding="utf-8")
        (out / "merge.json").write_text(json.dumps({**about, "layers": layers}, indent=1), encoding="utf-8")
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes files that are their owner's alone
        return {**measured, "weights_digest": model_digest(folder)}

    def _quantised(self, card: Mapping[str, Any]) -> bool:
        return self.onto == "exact" and card["base"]["held"] != "none"

    def _fold(
        self, context: Context, model: Artefact, adapter: Artefact, base: Mapping[str, Any], prepared: Any, folder: Path
    ) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """Fold both ways, save the one that is wanted; what was measured, and the norms of its layers."""
        import torch

        from graftline.stages.lm.load import quietly
        from graftline.stages.merge import folding

        directory, own = model.directory("model"), adapter.directory("adapter")
        ways = {"exact": str(base["held"]), "original": "none"}
        loss, sequences = _probe(prepared, directory)
        measured: dict[str, Any] = {}
        layers: dict[str, list[float]] = {}
        wanted: torch.Tensor | None = None
        context.progress(0, 1 + len(ways))
        for done, (way, how) in enumerate(ways.items()):
            wrapped = folding.adapted(directory, own, how)
            if wanted is None:
                wanted = folding.last_logits(wrapped, sequences)
                measured |= loss("unmerged", wrapped.get_base_model())
                context.progress(1, 1 + len(ways))
            merged, change = folding.fold(wrapped, own)
            merged = merged.to(getattr(torch, self.dtype))
            off, divergence = folding.apart(wanted, folding.last_logits(merged, sequences))
            measured |= {f"logits_off_{way}": off, f"kl_{way}": divergence, **loss(way, merged)}
            if way == self.onto:
                measured |= {"delta_share": change.share(0, 1), "lost_in_bf16": change.share(2, 0)}
                layers = {name: list(norms) for name, norms in sorted(change.layers.items())}
                with quietly():
                    merged.save_pretrained(folder)
            del merged, wrapped  # one model in memory at a time
            context.progress(2 + done, 1 + len(ways))
        return measured, layers


NOT_COPIED = (".", "model", "pytorch_model", "weights_digest", "config.", "graftline")
"""What a base's directory holds that the merged model writes itself, or has no use for."""


def _probe(prepared: Artefact | None, directory: Path) -> tuple[Any, list[list[int]]]:
    """How to measure a loss (name, model → metrics), and token sequences to compare logits on: held-out rows, or, for
    want of any, seeded random tokens."""
    import torch

    from graftline.stages.merge.folding import PROBES

    if prepared is None:
        size = json.loads((directory / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        drawn = torch.randint(size, (PROBES, 16), generator=torch.Generator().manual_seed(0))
        return lambda name, model: {}, drawn.tolist()

    from graftline.stages.train.collectives import Alone
    from graftline.stages.train.loop import Settings, collate, evaluate
    from graftline.stages.train.objective.sft import Sft
    from graftline.stages.train.prepared import PreparedRows

    rows = PreparedRows(prepared.rows())
    settings = Settings(steps=0, seed=0, bin_tokens=512, eval_every=0)
    bins = collate(Sft(), rows, [(place, 1.0) for place in range(len(rows))], settings)

    def loss(name: str, model: torch.nn.Module) -> dict[str, float]:
        return {f"loss_{name}": evaluate(model, Sft(), bins, settings, Alone())}

    return loss, [[int(token) for token in rows[place]["input_ids"]] for place in range(min(PROBES, len(rows)))]
