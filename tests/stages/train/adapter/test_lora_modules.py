"""Our layer is PEFT's own, to rounding; where more than the plain sum is asked, it is PEFT's own in fact."""

import peft.tuners.lora
import pytest
import torch

from graftline.stages.train import Float, Lora, Nf4
from graftline.stages.train.adapter import lora_modules
from graftline.stages.train.adapter.lora_modules import LoraLinear
from graftline.stages.train.build import hold

IDS = torch.randint(3, 64, (1, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def asked(monkeypatch):
    """How often the kernel was."""
    found = []
    kernel = lora_modules.lora_linear
    monkeypatch.setattr(lora_modules, "lora_linear", lambda *given: found.append(1) or kernel(*given))
    return found


def made(model, base=None, **fields):
    plug = Lora(rank=4, **fields)
    hold(model, base or Float(), plug)
    attached = plug.attach(model, {}, 0)
    draw = torch.Generator().manual_seed(5)
    for parameter in attached.parameters.values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    return attached


def passed(attached):
    """Loss and gradients of one pass."""
    loss = attached.model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in attached.parameters.items()}


@pytest.mark.parametrize("base", [Float(), Nf4()], ids=["float", "nf4"])
def test_values_and_gradients_are_pefts(llama, monkeypatch, asked, base):
    loss, gradients = passed(made(llama(), base))
    assert len(asked) == 14
    monkeypatch.setattr(LoraLinear, "forward", peft.tuners.lora.Linear.forward)
    expected, expected_gradients = passed(made(llama(), base))
    assert len(asked) == 14
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for name, each in gradients.items():
        assert each.abs().max() > 0, name
        torch.testing.assert_close(each, expected_gradients[name], atol=1e-5, rtol=1e-4)


def test_dropout_is_pefts_in_training_only(llama, asked):
    attached = made(llama(), dropout=0.5)
    attached.model.train()
    passed(attached)
    assert asked == []
    attached.model.eval()
    with torch.no_grad():
        attached.model(input_ids=IDS)
    assert len(asked) == 14


def test_switched_off_merged_mixed_or_trained_it_is_pefts(llama, asked):
    attached = made(llama())
    layer = attached.model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = layer(x)
        assert len(asked) == 1
        with attached.wrapped.disable_adapter():
            assert torch.equal(layer(x), layer.base_layer(x))
        layer.merge()
        assert torch.allclose(layer(x), plain, atol=1e-5)
        layer.unmerge()
        mixed = layer(x, adapter_names=["default", "__base__", "default"])
        assert torch.allclose(mixed[0], plain[0], atol=1e-6)
        assert torch.allclose(mixed[1], layer.base_layer(x)[1], atol=1e-6)
        layer.base_layer.weight.requires_grad_(True)
        assert torch.allclose(layer(x), plain, atol=1e-6)
    assert len(asked) == 1
    with torch.no_grad():
        layer.base_layer.weight.requires_grad_(False)
        assert torch.allclose(layer(x), plain, atol=1e-6) and len(asked) == 2


def test_biases_are_added(llama, asked):
    model = llama()
    linear = model.model.layers[0].mlp.up_proj
    linear.bias = torch.nn.Parameter(torch.arange(48.0))
    attached = made(model)
    layer = attached.model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        x = torch.zeros(2, 32)
        assert torch.equal(layer(x), linear.bias.expand(2, 48)) and len(asked) == 1
