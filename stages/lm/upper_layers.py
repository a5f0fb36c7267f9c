"""A model cut in two: the lower layers, and the upper ones alone, handed the hidden states that enter them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import InvalidField
from graftline.stages.lm.packed_attention import LIKE_LLAMA

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALED = ("granite",)
"""Types of model that multiply what they are handed for embeddings."""


def refuse_whole(model: PreTrainedModel) -> None:
    """Refuse a model that cannot be cut in two: where a layer's part is said by its place, where what is handed to it
    is changed, or where something is dropped out at random below.

    Raises:
        InvalidField: it cannot.
    """
    config: Any = model.config
    alike = len(set(getattr(config, "layer_types", None) or ())) < 2
    known = config.model_type in LIKE_LLAMA and config.model_type not in SCALED
    if not (known and alike) or getattr(config, "attention_dropout", None):
        raise InvalidField(
            f"the upper layers of this {config.model_type} cannot be computed by themselves",
            where="Train.objective.cached_prefix",
            do="leave it out",
        )


def cut_off(model: PreTrainedModel, upper: int) -> int:
    """Cut so many upper layers off: the model without head then answers with the hidden states that enter the first of
    them. Answers with how many layers are left.

    Raises:
        InvalidField: it has not so many, or cannot be cut.
    """
    from torch import nn

    refuse_whole(model)
    body: Any = model.base_model
    left = len(body.layers) - upper
    if left < 0:
        raise InvalidField(f"the model has {left + upper} layers", where="Train.adapter.upper", do="use fewer")
    body.layers, body.norm = body.layers[:left], nn.Identity()
    return left


@contextlib.contextmanager
def upper_layers(model: PreTrainedModel, below: int) -> Iterator[None]:
    """Have a model compute the layers above so many alone, on the hidden states that it is given as `inputs_embeds`.

    Raises:
        InvalidField: it cannot be cut.
    """
    refuse_whole(model)
    body: Any = model.base_model
    every = body.layers
    body.layers = every[below:]
    try:
        yield
    finally:
        body.layers = every
