"""Which modules of transformers' models are replaced; what they compute is compared in test_faster.py."""

from graftline.stages.lm.faster import faster
from graftline.stages.lm.faster_modules import KNOWN, Attention, Mlp, Norm

from .test_faster import KINDS, made


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
