"""PiSSA starts from the weights' principal part, also where the rest is quantised, and leaves as a plain LoRA."""

import json

import pytest
import torch
from safetensors.torch import load_file

from graftline.stages.errors import InvalidField
from graftline.stages.train import Float, Lora, Nf4, Pissa
from graftline.stages.train.build import build, hold

IDS = torch.randint(3, 64, (1, 12), generator=torch.Generator().manual_seed(1))
LAYERS = 14


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def attached(model, plug=None, base=None, trained=False):
    plug = plug or Pissa(rank=4)
    made = plug.attach(model, hold(model, base or Float(), plug), 0)
    if trained:
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in made.parameters.values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return made


def exported(made, tmp_path):
    about = made.export(tmp_path, {name: each.float() for name, each in made.parameters.items()}, tmp_path, "m")
    return tmp_path / "adapter", about


def layers(made):
    """Layer → (residual, s·B·A), as the model has them."""
    found = {}
    for name, each in made.parameters.items():
        path, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        found.setdefault(path, {})[part[0]] = each.detach().float()
    return {path: (made.model.get_submodule(path).base_layer, pair["B"] @ pair["A"]) for path, pair in found.items()}


def test_at_the_start_the_logits_are_the_bases_and_the_base_is_not(llama):
    made = attached(llama())
    assert torch.allclose(logits(made.model), logits(llama()), atol=1e-5)
    pristine = llama().state_dict()
    found = layers(made)
    assert len(found) == LAYERS
    for path, (residual, update) in found.items():
        weight = pristine[f"{path}.weight"]
        assert torch.allclose(residual.weight + update, weight, atol=1e-6)
        assert (residual.weight - weight).norm() > 0.1 * weight.norm()
        assert torch.linalg.matrix_rank(update, rtol=1e-4) == 4


def test_it_splits_off_the_largest_singular_values():
    """Also of the randomised decomposition, on a weight whose values fall off slowly."""
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    largest = torch.linalg.svdvals(weight)
    residual, (a, b) = Pissa(rank=8).split("layer", weight)
    assert torch.linalg.svdvals(b @ a)[:8] == pytest.approx(largest[:8], rel=0.02)
    assert float(torch.linalg.svdvals(residual)[0]) == pytest.approx(float(largest[8]), rel=0.05)
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=0.01), "the root on each side"


def test_the_split_is_the_same_every_time_and_in_every_format():
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    torch.manual_seed(1)
    one = Pissa(rank=4).split("layer", weight)[1]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = Pissa(rank=4).split("layer", weight.float())[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("decay", [0.0, 1.0], ids=["flat spectrum", "falling spectrum"])
def test_quantising_the_residual_loses_less_than_quantising_the_weight(decay):
    from graftline.stages.lm.nf4 import dequantised

    draw = torch.Generator().manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(256, 256, generator=draw))
    weight = left * (values * torch.arange(1, 257.0) ** -decay) @ right
    residual, (a, b) = Pissa(rank=16).split("layer", weight)
    with_pissa = (weight - dequantised(Nf4().hold("layer", residual)) - b @ a).norm()
    without = (weight - dequantised(Nf4().hold("layer", weight))).norm()
    assert with_pissa < (0.95 if decay == 0 else 0.6) * without


def test_on_nf4_the_start_is_nearer_the_base_than_the_quantised_base_is(llama):
    from graftline.stages.lm.nf4 import dequantised

    pristine = llama().state_dict()
    plain = llama()
    hold(plain, Nf4(), Lora())
    made = attached(llama(), Pissa(rank=8), Nf4())
    for path, (residual, update) in layers(made).items():
        weight = pristine[f"{path}.weight"]
        without = (weight - dequantised(plain.get_submodule(path))).norm()
        assert (weight - dequantised(residual) - update).norm() < without, path
    before = logits(llama())
    assert (logits(made.model) - before).norm() < (logits(plain) - before).norm()


def test_the_export_is_a_plain_lora_on_the_pristine_base(llama, tmp_path):
    from peft import PeftModel

    made = attached(llama(), trained=True)
    folder, about = exported(made, tmp_path)
    assert about == {"class": "Pissa", "rank": 8, "alpha": 8}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8 and config["init_lora_weights"] is True
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {each.shape[0 if ".lora_A." in name else 1] for name, each in tensors.items()} == {8}
    assert not torch.allclose(logits(made.model), logits(llama()), atol=0.1), "something was trained"
    peft = PeftModel.from_pretrained(llama(), str(folder)).eval()
    assert torch.allclose(logits(peft), logits(made.model), atol=1e-5)
    llama().save_pretrained(tmp_path / "base")
    reopened = Pissa(rank=4).reopen(folder, tmp_path / "base", "float32")
    assert torch.allclose(logits(reopened), logits(made.model), atol=1e-5)


def test_untrained_the_export_changes_nothing(llama, tmp_path):
    from peft import PeftModel

    folder, _ = exported(attached(llama().to(torch.bfloat16)), tmp_path)
    peft = PeftModel.from_pretrained(llama(), str(folder)).eval()
    assert torch.allclose(logits(peft), logits(llama()), atol=1e-5), "initial factors are exact in every format"


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "mlp.up_proj")], ids=["all", "some"])
def test_what_was_trained_on_nf4_belongs_on_the_base_its_card_names(llama, tmp_path, targets):
    """On the float base it is off by what quantising the residual lost, on plain NF4 by what W lost, too."""
    plug = Pissa(rank=4, targets=targets)
    made = attached(llama(), plug, Nf4(), trained=True)
    folder, _ = exported(made, tmp_path)
    llama().save_pretrained(tmp_path / "base")
    trained = logits(made.model)
    held = plug.valid_on(Nf4())
    off = {
        how: float((logits(plug.reopen(folder, tmp_path / "base", "float32", how)) - trained).norm())
        for how in (held, "none", "nf4")
    }
    assert off.pop(held) < 1e-4 * trained.norm() and min(off.values()) > 1e-2 * trained.norm()
    if targets == "all-linear":
        assert off["none"] < off["nf4"]


def test_the_base_it_belongs_on():
    some = Pissa(rank=4, targets=("v_proj", "q_proj"))
    assert [each.valid_on(Float()) for each in (Pissa(), some)] == ["none", "none"]
    assert Pissa(rank=16).valid_on(Nf4(double=False)) == "nf4-single+16"
    assert some.valid_on(Nf4()) == "nf4+4(q_proj,v_proj)"
    assert Lora().valid_on(Nf4()) == "nf4"


def test_switched_off_is_not_the_base(llama):
    """PEFT's own `disable_adapter` leaves the residual, which is another model: nobody may take it for the base."""
    made = attached(llama())
    assert not Pissa.off_is_base
    with made.wrapped.disable_adapter():
        assert not torch.allclose(logits(made.model), logits(llama()), atol=0.1)


def test_layers_that_are_not_targeted_stay_whole(llama):
    model = llama()
    factors = hold(model, Float(), Pissa(rank=2, targets=("q_proj", "mlp.up_proj")))
    assert {name.rpartition(".")[2] for name in factors} == {"q_proj", "up_proj"} and len(factors) == 4
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, llama().model.layers[0].mlp.down_proj.weight)


def test_fields_out_of_range_are_refused(llama):
    with pytest.raises(InvalidField, match=r"Pissa\.targets"):
        Pissa(targets=())
    with pytest.raises(InvalidField, match=r"Pissa\.rank: .*k_proj is \(16, 32\), which has no 17 singular values"):
        hold(llama(), Float(), Pissa(rank=17))


def test_built_in_bf16_on_nf4(tiny_directory):
    one, other = (
        build(tiny_directory / "model", dtype, Nf4(), Pissa(rank=2), 0, "cpu") for dtype in ("float32", "bfloat16")
    )
    assert {each.dtype for each in other.parameters.values()} == {torch.bfloat16}
    for name, each in one.parameters.items():
        assert torch.equal(each, other.parameters[name].float()), name
