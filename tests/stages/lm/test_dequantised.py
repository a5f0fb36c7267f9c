"""A base as it is multiplied with when it is held in four bits."""

import pytest
import torch

from graftline.stages.errors import AdapterMismatch
from graftline.stages.lm.dequantised import load_dequantised
from graftline.stages.lm.load import load_model


@pytest.fixture(autouse=True)
def imported():
    import bitsandbytes  # noqa: F401  seconds, which are no test's own


@pytest.mark.parametrize("held", ["nf4", "nf4-single"])
def test_linear_layers_but_the_head_are_bitsandbytes_own(tiny_directory, held):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    pristine, found = load_model(tiny_directory, "float32"), load_dequantised(tiny_directory, held)
    for name, module in pristine.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.detach()
            double = held == "nf4"
            theirs = dequantize_4bit(*quantize_4bit(weight, None, None, 64, double, "nf4"))
            wanted = weight if name == "lm_head" else theirs
            assert torch.equal(found.get_submodule(name).weight, wanted), name
    assert torch.equal(found.model.embed_tokens.weight, pristine.model.embed_tokens.weight)


def test_a_principal_part_in_float_is_added_to_its_quantised_rest(tiny_directory):
    from graftline.stages.lm.held import load_held

    held, found = load_held(tiny_directory, "float32", "nf4+4"), load_dequantised(tiny_directory, "nf4+4")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert (held(ids).logits - found(ids).logits).abs().max() < 1e-4
    layer = "model.layers.0.mlp.down_proj"
    pristine = load_model(tiny_directory, "float32").get_submodule(layer).weight
    plain = load_dequantised(tiny_directory, "nf4").get_submodule(layer).weight
    assert (found.get_submodule(layer).weight - pristine).norm() < (plain - pristine).norm()


def test_a_base_held_as_it_is_stays_as_it_is(tiny_directory):
    pristine, found = load_model(tiny_directory, "float32"), load_dequantised(tiny_directory, "none")
    assert all(torch.equal(each, found.state_dict()[name]) for name, each in pristine.state_dict().items())


def test_nobody_knows_of_three_bits(tiny_directory):
    with pytest.raises(AdapterMismatch, match="'int3' cannot be rebuilt here"):
        load_dequantised(tiny_directory, "int3")
