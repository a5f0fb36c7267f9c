"""A model's upper layers on the hidden states that its lower ones make: together, the whole model."""

import copy

import pytest
import torch

from graftline.stages.errors import InvalidField
from graftline.stages.lm.faster import faster
from graftline.stages.lm.packed_attention import LIKE_LLAMA
from graftline.stages.lm.upper_layers import SCALED, cut_off, refuse_whole, upper_layers

from .test_faster import made, packed

CUT = sorted(set(LIKE_LLAMA) - set(SCALED))


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("quick", [False, True])
def test_both_parts_are_the_whole_model(kind, quick):
    model = made(kind)
    if quick:
        faster(model)
    given = packed()
    for upper in (1, 2):
        lower = copy.deepcopy(model)
        assert cut_off(lower, upper) == 2 - upper
        states = lower.base_model(**given, use_cache=False).last_hidden_state
        entered = []
        seen = model.model.layers[2 - upper].register_forward_pre_hook(
            lambda _, args, entered=entered: entered.append(args[0])
        )
        whole = model(**given, use_cache=False).logits
        seen.remove()
        torch.testing.assert_close(states, entered[0], atol=1e-6, rtol=1e-6)
        with upper_layers(model, 2 - upper):
            assert len(model.model.layers) == upper
            found = model(inputs_embeds=states, position_ids=given["position_ids"], use_cache=False).logits
        assert len(model.model.layers) == 2
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


def test_the_layers_are_back_after_an_error():
    model = made("llama")
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match="inputs_embeds"), upper_layers(model, 1):
        model(use_cache=False)
    assert [name for name, _ in model.named_parameters()] == names


def test_a_model_that_is_more_than_its_layers_is_refused():
    """Granite multiplies what it is handed; layers that attend differently are told apart by their place."""
    mixed, dropping = made("qwen3"), made("llama")
    mixed.config.layer_types = ["sliding_attention", "full_attention"]
    dropping.config.attention_dropout = 0.1
    for model in (made("granite"), made("gpt2"), mixed, dropping):
        with pytest.raises(InvalidField, match=r"cached_prefix: the upper layers of this \w+ cannot.*Leave it out"):
            refuse_whole(model)
    with pytest.raises(InvalidField, match="gpt2"), upper_layers(made("gpt2"), 1):
        pass
    with pytest.raises(InvalidField, match=r"upper: the model has 2 layers"):
        cut_off(made("llama"), 3)
