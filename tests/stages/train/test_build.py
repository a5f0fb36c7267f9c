import torch

from graftline.stages.train import Float, Lora
from graftline.stages.train.build import build, hold
from graftline.stages.train.plugs import Adapter, Base


class Halves(Adapter):
    """Takes half of each weight before it is held."""

    def split(self, name, weight):
        return weight / 2, weight / 2


class Rounded(Base):
    """Holds weights on a coarse grid."""

    @property
    def held(self):
        return "rounded"

    def hold(self, name, weight):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter((weight * 4).round() / 4, requires_grad=False)
        return layer


def test_the_adapter_splits_float_weights_before_the_base_holds_the_rest(llama):
    before = llama().state_dict()
    model = llama()
    factors = hold(model, Rounded(), Halves())
    names = {name.removesuffix(".weight") for name in before if "_proj" in name}
    assert set(factors) == names
    for name in names:
        weight = before[f"{name}.weight"]
        assert torch.equal(factors[name], weight / 2)
        assert torch.equal(model.get_submodule(name).weight, (weight * 2).round() / 4)
    assert torch.equal(model.lm_head.weight, before["lm_head.weight"]), "the output head is never held"


def test_a_split_stays_where_the_base_holds_nothing(llama):
    model = llama()
    hold(model, Float(), Halves())
    weight = llama().model.layers[0].mlp.up_proj.weight
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, weight / 2)


def test_built_from_a_directory_with_a_seeded_start(tiny_directory):
    made = [
        build(tiny_directory / "model", dtype, Float(), Lora(rank=2), seed, "cpu").parameters
        for dtype, seed in (("float32", 0), ("float32", 0), ("float32", 1), ("bfloat16", 0))
    ]
    name = next(name for name in made[0] if "lora_A" in name)
    assert torch.equal(made[0][name], made[1][name]) and not torch.equal(made[0][name], made[2][name])
    assert made[3][name].dtype == torch.bfloat16
