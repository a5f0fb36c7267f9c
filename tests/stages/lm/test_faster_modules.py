"""Which modules of transformers' models are replaced; what they compute is compared in test_faster.py."""

import pytest
import torch

from graftline.stages.lm.faster import faster
from graftline.stages.lm.faster_modules import KNOWN, Attention, Layer, Mlp, Norm, asked_for

from .test_faster import KINDS, made, packed


def test_what_is_known_is_replaced_and_nothing_else():
    model = made("llama")
    names, kept = set(dict(model.named_parameters())), made("llama", hidden_act="gelu")
    faster(model)
    faster(model)  # once more changes nothing
    layer = model.model.layers[0]
    assert [type(each).__mro__[1] for each in (layer.input_layernorm, layer.self_attn, layer.mlp)] == [
        Norm,
        Attention,
        Mlp,
    ]
    assert isinstance(model.model.norm, Norm) and set(dict(model.named_parameters())) == names
    assert type(layer.self_attn).__mro__[2].__name__ == "LlamaAttention"
    faster(kept)
    assert not isinstance(kept.model.layers[0].mlp, Mlp) and isinstance(kept.model.norm, Norm)
    windowed = made("mistral")
    for each in windowed.modules():
        if hasattr(each, "config"):
            each.config.sliding_window = 4
    faster(windowed)
    assert not isinstance(windowed.model.layers[0].self_attn, Attention)


def test_every_class_we_know_is_there():
    """A class that transformers renames would silently be left as it is."""
    seen = {type(module).__name__ for kind in KINDS for module in made(kind).modules()}
    assert set(KNOWN) <= seen


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_asked_for_some_tokens_the_last_layer_computes_no_other(kind):
    """Values and gradients are those of all tokens, chosen afterwards."""
    model, places = made(kind), torch.tensor([20, 3, 3, 11])
    faster(model)
    results = []
    for some in (True, False):
        model.zero_grad()
        if some:
            with asked_for(model.model, places) as able:
                hidden = model.model(**packed()).last_hidden_state
            assert able and hidden.shape == (1, 4, 32)
        else:
            hidden = model.model(**packed()).last_hidden_state[:, places]
        hidden.square().sum().backward()
        results.append([hidden.detach(), *(each.grad for each in model.model.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_was_asked_is_forgotten_and_other_kinds_of_model_are_left():
    model, other = made("llama"), made("gemma")
    faster(model)
    faster(other)
    with pytest.raises(RuntimeError, match="stop"), asked_for(model.model, torch.tensor([1])):
        raise RuntimeError("stop")
    last = model.model.layers[-1]
    assert isinstance(last, Layer) and last.kept is None
    with asked_for(other.model, torch.tensor([1])) as able:
        assert not able
