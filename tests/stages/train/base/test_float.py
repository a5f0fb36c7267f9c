import torch

from graftline.stages.train import Float, Lora
from graftline.stages.train.build import hold


def test_holding_changes_no_weight_and_no_layer(llama):
    model, before = llama(), llama().state_dict()
    layers = list(model.modules())
    assert hold(model, Float(), Lora()) == {}
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(now is then for now, then in zip(model.modules(), layers, strict=True))
    assert Float().held == "none"
