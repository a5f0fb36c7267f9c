"""The log-probability of given tokens at given places, without the logits of all of them at once."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from torch import Tensor, nn


def label_logprobs(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    places: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    graph: bool = True,
    states: Tensor | None = None,
    below: int = 0,
) -> Tensor:
    """The log-probability of each label [labels], fp32, in packed rows of tokens.

    Restarted positions, no mask and no cache: only so does transformers keep packed rows apart. What rows begin with
    alike is computed once, where the model can tell and nothing is dropped out at random.

    Args:
        input_ids: [1, tokens]; `position_ids` likewise, restarted at each row.
        places: [labels], where each is predicted.
        mask: [1, 1, tokens, tokens], where the positions do not say who sees whom.
        graph: without one they are the values that training has, to the bit, for less than with it; not those without
            gradients, which other kernels compute.
        states: [tokens, hidden], what so many layers `below` make of the tokens, which are then not computed (None: all
            are).

    Raises:
        InvalidField: the model's upper layers cannot be computed by themselves.
    """
    import torch
    from torch.nn.functional import cross_entropy, pad

    from graftline.kernels.linear_cross_entropy import linear_cross_entropy
    from graftline.stages.lm.faster_modules import asked_for
    from graftline.stages.lm.shared_prefixes import attends_by_positions, came_from, drops, shared_prefixes
    from graftline.stages.lm.upper_layers import upper_layers

    given: dict[str, Any] = {"use_cache": False} if mask is None else {"use_cache": False, "attention_mask": mask}
    body: Any = model
    weight = head_weight(model)
    part = contextlib.nullcontext() if states is None else upper_layers(body, below)
    if weight is None:
        given |= _tokens(input_ids, position_ids, states)
        slices = "logits_to_keep" in inspect.signature(model.forward).parameters
        with part:
            logits = model(**given, **({"logits_to_keep": places} if slices else {})).logits[0]
        found = -cross_entropy((logits if slices else logits[places]).float(), labels, reduction="none")
        return found if graph else found.detach()
    apart = mask is None and attends_by_positions(body)
    if apart and not drops(body) and (shared := shared_prefixes(input_ids, position_ids)) is not None:
        input_ids, position_ids, went = shared
        states = None if states is None else states[came_from(went)]
        places = went[places]
    count, unit = len(labels), even(body, input_ids.shape[1]) if apart else 1
    more, extra = -input_ids.shape[1] % unit, -count % unit
    if more:
        after = position_ids[:, -1:] + torch.arange(1, more + 1)
        input_ids, position_ids = pad(input_ids, (0, more)), torch.cat([position_ids, after], 1)
        states = None if states is None else pad(states, (0, 0, 0, more))
    given |= _tokens(input_ids, position_ids, states)
    places, labels = torch.cat([places, places[-1:].expand(extra)]), pad(labels, (0, extra))
    with part, asked_for(body.base_model, places) as able:
        hidden = body.base_model(**given).last_hidden_state[0]
    hidden = hidden if able else hidden[places]
    return linear_cross_entropy(hidden if graph else hidden.detach(), weight, labels)[0][:count]


def _tokens(input_ids: Tensor, position_ids: Tensor, states: Tensor | None) -> dict[str, Tensor]:
    known = {"input_ids": input_ids} if states is None else {"inputs_embeds": states[None]}
    return {**known, "position_ids": position_ids}


EVEN = ((512, 32), (128, 16))
"""From so many packed tokens on, to a multiple of so many."""


def even(model: Any, tokens: int) -> int:
    """To a multiple of how many the tokens are lengthened, after the last row, where nothing sees them, and the labels,
    by some that are computed twice. oneDNN compiles each of a layer's products anew for another number of rows, at a
    megabyte and a millisecond or two each: 6 % of the first ten steps on Alpaca in bf16, 4 % with this [measured]."""
    import torch

    if model.dtype == torch.float32:
        return 1
    return next((unit for least, unit in EVEN if tokens >= least), 1)


def head_weight(model: nn.Module) -> Tensor | None:
    """The weight of an output head that is all that stands between a model's last hidden states and its logits; None
    where there is more: a bias, a cap, a scale, an adapter or a hook on the head, a model of one's own."""
    import torch
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or not type(model).__module__.startswith("transformers."):
        return None
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return None
    if any(each._forward_hooks or each._forward_pre_hooks for each in (model, head)):
        return None
    if model not in _PLAIN:
        _PLAIN[model] = _is_plain(model, head)
    return head.weight if _PLAIN[model] else None


_PLAIN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _is_plain(model: Any, head: nn.Linear) -> bool:
    """Whether the model's logits are the head's product, to the bit, on three tokens."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ids = torch.arange(3, device=head.weight.device)[None] % head.out_features
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            if hidden.dtype != head.weight.dtype:
                return False
            return torch.equal(model(input_ids=ids, use_cache=False).logits, head(hidden))
    finally:
        model.train(training)
