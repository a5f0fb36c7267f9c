"""What the frozen lower layers make of tokenised rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from graftline.stages.expected import Expected, Given
from graftline.stages.shapes import Scorer
from graftline.stages.stage import Context, Model
from graftline.stages.train.base.float import Float
from graftline.stages.train.plugs import Base
from graftline.stages.train.reference_logprobs import BaseAlone

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from graftline.stages.train.plugs import Row


class PrefixStates(Scorer):
    """The hidden states of each row that enter the first layer that trains, where the upper layers alone do: the same
    in every epoch, whatever is learnt. `Sft(cached_prefix=True)` adds this stage itself; trials that train as many
    layers, of whatever rank, seed and learning rate, share it.

    It takes tokens × hidden × 2 bytes in bf16 (4 in fp32), on disk and in memory: 1.15 KB a token of SmolLM2-135M. It
    pays from the second epoch on: with `Lora(rank=16, upper=8)` on 64 rows of Alpaca (7304 tokens), in bf16 on one
    thread, three epochs take 18.5 s instead of 28.3 s (1184 and 775 tokens/s; 49.5 s where all 30 layers train), for
    5.3 s of this stage, once [measured].

    Args:
        rows: tokenised.
        model: the base.
        upper: how many of its layers train, from the last one down.
        base: how it is held.
        dtype: number format (`auto`: the faster of bf16 and fp32 by a short probe, as in `Train`).

    Raises:
        InvalidField: the model has fewer layers, or cannot be cut in two.

    Property tested: equal to the whole model's hidden states; the same whichever rows share a batch; the same stage for
    other ranks, seeds and learning rates.
    """

    method = "train.prefix_states"
    origin = "Graftline: what no step changes is computed once, not once an epoch"
    needs = {"input_ids": "list<int32>"}
    adds = {"prefix_states": "large_binary", "prefix_layers": "int32"}
    whole_node = True

    model: Model
    upper: Annotated[int, Field(ge=1)]
    base: Base = Float()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def score_rows(self, table: pa.Table, context: Context) -> Mapping[str, Sequence[Any]]:
        from graftline.stages.lm.load import probe_dtype

        dtype = probe_dtype() if self.dtype == "auto" else self.dtype
        device = "cuda" if context.resources.gpus else "cpu"
        model, layers = _lower(context.opened(self.model).directory("model"), dtype, self.base, self.upper, device)
        # A row at a time: rounding depends on what shares a pass, and no row's states may depend on the others.
        states = [_states(model, ids) for ids in table["input_ids"].to_pylist()]
        return {"prefix_states": states, "prefix_layers": [layers] * len(states)}

    def expected(self, given: Given) -> Expected:
        return Expected(given.rows(self.rows))


def pack_states(rows: Sequence[Row]) -> dict[str, Tensor]:
    """The states of rows that share a bin, as bytes [tokens, n], and how many layers made them."""
    import numpy as np
    import torch

    each = [np.frombuffer(row["prefix_states"], np.uint8).reshape(len(row["input_ids"]), -1) for row in rows]
    return {
        "prefix_states": torch.from_numpy(np.concatenate(each)),
        "prefix_layers": torch.tensor(rows[0]["prefix_layers"]),
    }


def entering(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `label_logprobs` is told of packed states. (`auto` may have found another number format than training.)"""
    import torch

    body: Any = model
    packed, hidden = tensors["prefix_states"], body.config.hidden_size
    stored = {2 * hidden: torch.bfloat16, 4 * hidden: torch.float32}[packed.shape[1]]
    return {"states": packed.view(stored).to(body.dtype), "below": int(tensors["prefix_layers"])}


def _states(model: PreTrainedModel, ids: Sequence[int]) -> bytes:
    """By the operations that training has, which are those with gradients on, and by products of few sizes: what
    follows a token changes nothing."""
    import torch

    from graftline.stages.lm.label_logprobs import even

    longer = len(ids) + -len(ids) % even(model, len(ids))
    given = torch.tensor([[*ids, *[0] * (longer - len(ids))]], device=model.device)
    places = torch.arange(longer, device=model.device)[None]
    hidden = model.base_model(input_ids=given, position_ids=places, use_cache=False).last_hidden_state
    content: bytes = hidden[0, : len(ids)].cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return content


@functools.lru_cache(maxsize=1)
def _lower(directory: Path, dtype: str, base: Base, upper: int, device: str) -> tuple[PreTrainedModel, int]:
    """The model without its upper layers, and how many it has left."""
    from graftline.stages.lm.upper_layers import cut_off
    from graftline.stages.train.build import build

    model = build(directory, dtype, base, BaseAlone(), 0, device).model.eval()
    model.requires_grad_(False)
    return model, cut_off(model, upper)
