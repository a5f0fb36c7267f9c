"""Supervised fine-tuning on completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.specification import Added
from graftline.stages.stage import Stage
from graftline.stages.train.plugs import Adapter, Batch, LossContext, LossOut, Objective, Row, Start
from graftline.stages.train.prefix_states import PrefixStates, entering, pack_states
from graftline.stages.train.tokenised import Tokenised

if TYPE_CHECKING:
    from torch import nn


class Sft(Objective):
    """Cross entropy of the assistant's tokens and their end-of-turn token, per trained token over the whole batch.
    Packed rows do not see each other, and the output head runs at trained positions only.

    Args:
        prompt_weight: weight of the prompt's tokens beside the assistant's 1 (0 to 1).
        cached_prefix: where the upper layers alone train (`train.Lora(upper=8)`), what the frozen ones below make of
            each row is a hidden row stage, `PrefixStates`, computed once for all epochs and trials; see there what it
            costs and saves. In bf16 the states are rounded as those of single rows, not of bins.

    Raises:
        InvalidField: a cached prefix with an adapter that may train any layer, or a model that cannot be cut in two.

    Property tested: packed rows have the loss of separate ones; a row does not change its neighbour's logits; prompt
    tokens get no loss; the end-of-turn token does; a cached prefix changes no loss and no gradient in fp32.
    """

    method = "objective.sft"
    origin = "completion-only fine-tuning with exact packing, the baseline of every paper on instruction tuning"

    prompt_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    cached_prefix: Annotated[bool, Added] = False

    def suits(self, adapter: Adapter) -> None:
        if self.cached_prefix and adapter.upper_layers is None:
            raise InvalidField(
                f"{adapter!r} may train any layer, so that no layer's output stays as it is",
                where="Train.objective.cached_prefix",
                do="use adapter=train.Lora(upper=8), or leave it out",
            )

    def prepare(self, rows: Stage, start: Start) -> Stage:
        tokenised = Tokenised(rows=rows, model=start.pristine, max_length=start.max_length)
        upper = start.adapter.upper_layers
        if not self.cached_prefix or upper is None:
            return tokenised
        return PrefixStates(rows=tokenised, model=start.pristine, upper=upper, base=start.base, dtype=start.dtype)

    @property
    def as_served(self) -> Sft:
        return type(self)(**{**self.__dict__, "cached_prefix": False}) if self.cached_prefix else self

    def collate(self, places: Sequence[int], rows: Sequence[Row], weights: Sequence[float]) -> Batch:
        import numpy as np
        import torch

        ids = np.concatenate([row["input_ids"] for row in rows])
        lengths = [len(row["input_ids"]) for row in rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        weight = np.concatenate(
            [np.where(row["trained"], 1.0, self.prompt_weight) * each for row, each in zip(rows, weights, strict=True)]
        )
        weight[np.cumsum([0, *lengths[:-1]])] = 0.0  # nothing comes before a row's first token to predict it from
        targets = np.flatnonzero(weight)
        tensors = {
            "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
            "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
            "positions": torch.from_numpy(targets - 1),
            "labels": torch.from_numpy(ids[targets].astype(np.int64)),
            "weights": torch.from_numpy(weight[targets].astype(np.float32)),
            "owner": torch.from_numpy(owner[targets]),
        }
        if self.cached_prefix:
            tensors |= pack_states(rows)
        return Batch(tuple(places), tensors, weight=float(weight.sum()), tokens=len(ids))

    def loss(self, model: nn.Module, batch: Batch, context: LossContext) -> LossOut:
        import torch

        from graftline.stages.lm.label_logprobs import label_logprobs

        given = batch.tensors
        known = entering(model, given) if self.cached_prefix else {}
        ids, positions = given["input_ids"], given["position_ids"]
        each = -label_logprobs(model, ids, positions, given["positions"], given["labels"], **known)
        weights, owner = given["weights"], given["owner"]
        with torch.no_grad():
            zeros = torch.zeros(len(batch.rows), dtype=torch.float32, device=each.device)
            sums = zeros.index_add(0, owner, each.detach() * weights)
            per_row = sums / zeros.index_add(0, owner, weights).clamp_min(1e-30)  # a sampler may weigh a row 0
        return LossOut((each * weights).sum(), batch.weight, per_row)
