"""What the reference policy says of preference rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from graftline.stages.expected import Expected, Given
from graftline.stages.lm.reference import pristine_base
from graftline.stages.shapes import Scorer
from graftline.stages.stage import Context, Model
from graftline.stages.train.base.float import Float
from graftline.stages.train.plugs import Adapter, Attached, Base

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel


class ReferenceLogprobs(Scorer):
    """The log-probability of each answer of a pair, under the model as training finds it: the sum over the answer's
    tokens and its end of turn. An objective adds this stage itself; trials for which it is the same share it.

    Args:
        rows: tokenised pairs.
        model: the base, or the adapter that `adapter` goes on from.
        base: how it is held.
        adapter: the adapter whose initial state belongs to the reference (None: the base alone).
        seed: of the adapter's start.
        dtype: number format (`auto`: the faster of bf16 and fp32 by a short probe, as in `Train`).

    Property tested: equal to the log-probabilities the engine gives; the same whichever rows share a batch; a reference
    with an adapter is its initial state, not the base.
    """

    method = "train.reference_logprobs"
    origin = "Graftline: the reference of preference methods is computed once, not once a step"
    needs = {"prompt_ids": "list<int32>", "chosen_ids": "list<int32>", "rejected_ids": "list<int32>"}
    adds = {"reference_chosen": "float64", "reference_rejected": "float64"}
    calls_model: ClassVar[bool] = True

    model: Model
    base: Base = Float()
    adapter: Adapter | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def score_rows(self, table: pa.Table, context: Context) -> Mapping[str, Sequence[Any]]:
        import numpy as np
        import torch

        from graftline.stages.lm.load import probe_dtype
        from graftline.stages.train.pairs import answer_logprobs, pack_pairs

        dtype = probe_dtype() if self.dtype == "auto" else self.dtype
        device = "cuda" if context.resources.gpus else "cpu"
        directory = context.opened(pristine_base(self.model)).directory("model")
        begun = context.opened(self.model).directory("adapter") if self.model.kind == "adapter" else None
        model = _reference(directory, dtype, self.base, self.adapter, self.seed, device, begun)
        found: dict[str, list[float]] = {name: [] for name in self.adds}
        for row in table.select(list(self.needs)).to_pylist():
            # A pair at a time: rounding depends on what shares a pass, and no row's score may depend on the others.
            arrays = {name: np.array(ids, dtype=np.int64) for name, ids in row.items()}
            tensors = {name: each.to(device) for name, each in pack_pairs([arrays]).items()}
            with torch.no_grad():
                sums, _ = answer_logprobs(model, tensors, 1)
            for name, value in zip(found, sums[0].tolist(), strict=True):
                found[name].append(value)
        return found

    def expected(self, given: Given) -> Expected:
        return Expected(given.rows(self.rows))  # a pass over given tokens is no request to a model


class BaseAlone(Adapter):
    """No adapter: the held base as it is."""

    def attach(self, model: PreTrainedModel, factors: Mapping[str, Any], seed: int) -> Attached:
        return Attached(model, {})


@functools.lru_cache(maxsize=1)
def _reference(
    directory: Path, dtype: str, base: Base, adapter: Adapter | None, seed: int, device: str, begun: Path | None
) -> PreTrainedModel:
    from graftline.stages.train.build import build

    return build(directory, dtype, base, adapter or BaseAlone(), seed, device, begun).model.eval()
