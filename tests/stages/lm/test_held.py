"""A base is rebuilt as an adapter's card says, and adapters meet no base that is held otherwise."""

import json
import re
import shutil

import pytest
import torch
from peft import PeftModel

from graftline.stages.errors import AdapterMismatch
from graftline.stages.lm.adapters import AdapterSet
from graftline.stages.lm.held import held_by_all, held_of, is_named, load_held, with_principal
from graftline.stages.lm.in_memory import Loaded
from graftline.stages.lm.load import load_model, model_digest

IDS = torch.arange(3, 43).view(2, 20)
PROJECTIONS = 14


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


@pytest.fixture
def belonging(tmp_path):
    """Copies an adapter and has its card say how its base is held."""

    def make(adapter, held):
        copy = tmp_path / f"{adapter.name}-{held}"
        shutil.copytree(adapter, copy)
        card = json.loads((copy / "graftline.json").read_text())
        card["base"]["held"] = held
        (copy / "graftline.json").write_text(json.dumps(card))
        return copy

    return make


def test_linear_layers_but_the_head_are_quantised_and_nothing_else(tiny_directory):
    from graftline.stages.lm.nf4 import dequantised

    plain, held = load_model(tiny_directory, "float32"), load_held(tiny_directory, "float32", "nf4")
    quantised = {name: each for name, each in held.named_modules() if hasattr(each, "quant_state")}
    assert len(quantised) == PROJECTIONS and all("_proj" in name for name in quantised)
    for name, each in plain.named_parameters():
        if "_proj" not in name:
            assert torch.equal(each, held.get_parameter(name)), name
    for name, layer in quantised.items():
        weight = plain.get_submodule(name).weight.detach()
        assert 0.05 < (dequantised(layer) - weight).norm() / weight.norm() < 0.15
    assert not held.training and not any(module.training for module in held.modules())
    assert not torch.allclose(logits(held), logits(plain), atol=1e-2)


def test_none_is_the_model_as_it_is(tiny_directory):
    assert torch.equal(logits(load_held(tiny_directory, "float32")), logits(load_model(tiny_directory, "float32")))


def test_its_bytes_do_not_depend_on_what_it_computes_in(tiny_directory):
    one, other = (load_held(tiny_directory, dtype, "nf4") for dtype in ("float32", "bfloat16"))
    for name, layer in one.named_modules():
        if hasattr(layer, "quant_state"):
            assert torch.equal(layer.weight.data, other.get_submodule(name).weight.data)
    assert {each.dtype for each in other.parameters() if each.is_floating_point()} == {torch.bfloat16}
    assert other.dtype == other.config.dtype == torch.bfloat16
    assert logits(other).dtype == torch.bfloat16 and (logits(other) - logits(one)).abs().max() < 0.2
    assert other.model.rotary_emb.inv_freq.dtype == torch.float32, "rotary angles keep their precision"


def test_single_and_double_quantisation_are_two_bases(tiny_directory):
    double, single = (logits(load_held(tiny_directory, "float32", how)) for how in ("nf4", "nf4-single"))
    assert 0 < (double - single).abs().max() < 0.1


@pytest.mark.parametrize("held", ["nf4+4", "nf4-single+4(q_proj,mlp.down_proj)"])
def test_a_principal_part_in_float_is_nearer_the_weight(tiny_directory, held):
    from graftline.stages.lm.nf4 import dequantised

    pristine = load_model(tiny_directory, "float32")
    plain, kept = (load_held(tiny_directory, "float32", how) for how in (held.partition("+")[0], held))
    for name, layer in kept.named_modules():
        if hasattr(layer, "quant_state"):
            weight, other = pristine.get_submodule(name).weight.detach(), dequantised(plain.get_submodule(name))
            off, without = (weight - dequantised(layer)).norm(), (weight - other).norm()
            assert off < without if "(" not in held or "q_proj" in name or "down_proj" in name else off == without
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    layer = kept.model.layers[0].self_attn.q_proj
    torch.testing.assert_close(layer(x), x @ dequantised(layer).T, atol=1e-5, rtol=1e-5)
    assert logits(load_held(tiny_directory, "bfloat16", held)).dtype == torch.bfloat16


def test_how_a_base_with_a_principal_part_is_called():
    assert with_principal("nf4", 8) == "nf4+8"
    assert with_principal("nf4-single", 2, ("v_proj", "layers.0.mlp.up_proj")) == (
        "nf4-single+2(layers.0.mlp.up_proj,v_proj)"
    )


def test_layers_are_named_as_peft_names_them():
    names = ["layers.0.mlp.up_proj", "layers.0.mlp.gate_up_proj", "up_proj"]
    assert [is_named(name, ["up_proj"]) for name in names] == [True, False, True]
    assert is_named("layers.0.mlp.up_proj", ["x", "mlp.up_proj"])


def test_biases_stay(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, attention_bias=True, **sizes))
    for name, each in model.named_parameters():
        torch.nn.init.normal_(each, std=0.3 if "bias" in name else 0.05)
    model.save_pretrained(tmp_path)
    held = load_held(tmp_path, "float32", "nf4")
    for name, each in model.named_parameters():
        if "bias" in name:
            assert torch.equal(held.get_parameter(name), each)
    assert torch.allclose(logits(held), logits(model.eval()), atol=0.2)


def test_a_way_that_is_unknown_is_refused(tiny_directory):
    for held in ("int3", "nf4+0", "nf4+8(", "nf4 "):
        with pytest.raises(AdapterMismatch, match=f"held as '{re.escape(held)}' cannot be rebuilt here"):
            load_held(tiny_directory, "float32", held)


def test_what_cards_say(belonging, make_adapter, tmp_path):
    adapter = make_adapter(1, 2)
    assert (held_of(adapter), held_of(belonging(adapter, "nf4")), held_of(tmp_path)) == ("none", "nf4", "none")
    assert (held_by_all({}, where=""), held_by_all({"a": "nf4", "b": "nf4"}, where="")) == ("none", "nf4")
    with pytest.raises(AdapterMismatch, match=r'^here: .*a \(nf4\), b \(none\)\. .*held="none"'):
        held_by_all({"a": "nf4", "b": "none", "c": "none"}, where="here")


def test_an_engine_holds_its_base_as_its_adapters_say(belonging, make_adapter, tiny_directory):
    adapter = belonging(make_adapter(3, 4), "nf4")
    loaded = Loaded("tiny", tiny_directory, "float32", {"it": adapter})
    assert loaded.held == "nf4"
    with torch.no_grad():
        peft = PeftModel.from_pretrained(load_held(tiny_directory, "float32", "nf4"), adapter).eval()(IDS).logits
    loaded.adapters.routing.use([loaded.adapters.acquire("it")] * 2)
    torch.testing.assert_close(logits(loaded.model), peft, atol=1e-4, rtol=1e-4)
    loaded.adapters.routing.use(())
    # An engine computes by the faster modules, which round otherwise.
    torch.testing.assert_close(
        logits(loaded.model), logits(load_held(tiny_directory, "float32", "nf4")), atol=1e-5, rtol=1e-5
    )


def test_an_engine_refuses_bases_held_differently_unless_told_how(belonging, make_adapter, tiny_directory):
    adapters = {"one": make_adapter(1, 2), "two": belonging(make_adapter(2, 2), "nf4")}
    with pytest.raises(AdapterMismatch, match=r"one \(none\), two \(nf4\)|two \(nf4\), one \(none\)"):
        Loaded("tiny", tiny_directory, "float32", adapters)
    loaded = Loaded("tiny", tiny_directory, "float32", adapters, held="none")
    assert loaded.held == "none" and set(loaded.adapters.names) == {"one", "two"}


def test_an_adapter_that_comes_later_is_held_to_it_too(belonging, make_adapter, tiny_directory):
    adapter = belonging(make_adapter(2, 2), "nf4")
    adapters = AdapterSet(load_model(tiny_directory, "float32"), model_digest(tiny_directory), held="none")
    with pytest.raises(AdapterMismatch, match="belongs on a base held as nf4, this one is held as none"):
        adapters.load("two", adapter)
