"""Our layer is PEFT's own, to rounding; where more than the plain sum is asked, it is PEFT's own in fact."""

import peft.tuners.lora
import pytest
import torch

from graftline.stages.train import Float, Lora, Nf4
from graftline.stages.train.adapter import lora_modules
from graftline.stages.train.adapter.lora_modules import LoraLinear
from graftline.stages.train.build import hold

IDS = torch.randint(3, 64, (1, 12), generator=torch.Generator().manual_seed(1))

EACH = [3, 1, 2, 1] * 2
"""Of two blocks: q, k and v together, o, gate and up together, down."""


@pytest.fixture
def asked(monkeypatch):
    """How many layers the kernel computed, call by call."""
    found = []
    kernel = lora_modules.lora_linear
    monkeypatch.setattr(lora_modules, "lora_linear", lambda x, layers: found.append(len(layers)) or kernel(x, layers))
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
    assert asked == EACH
    monkeypatch.setattr(LoraLinear, "forward", peft.tuners.lora.Linear.forward)
    expected, expected_gradients = passed(made(llama(), base))
    assert asked == EACH
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
    assert asked == EACH


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


def test_layers_of_one_input_compute_together_only_where_all_can(llama, asked):
    attached = made(llama(), targets=("q_proj", "v_proj", "gate_proj", "up_proj"))
    gate = attached.model.model.layers[0].mlp.gate_proj
    with torch.no_grad():
        attached.model(input_ids=IDS)
        assert asked == [1, 1, 2] * 2  # k carries no adapter
        asked.clear()
        gate.merge()
        attached.model(input_ids=IDS)
        assert asked == [1, 1, 1, 1, 1, 2]


def test_outside_their_modules_pass_each_computes_its_own(llama, asked):
    """What one call computed for its neighbours may be stale by the time of another."""
    attached = made(llama())
    block = attached.model.model.layers[0].mlp
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        block.gate_proj(x)
        before = block.up_proj(x)
        block.up_proj.lora_B["default"].weight.mul_(2)
        assert asked == [1, 1] and not torch.equal(block.up_proj(x), before)
        block(x)
        assert asked == [1, 1, 1, 2, 1]
        block.gate_proj(x)
        assert asked == [1, 1, 1, 2, 1, 1]


def test_a_pass_that_fails_leaves_nothing_behind(llama):
    attached = made(llama())
    block = attached.model.model.layers[0].mlp
    shared = block.gate_proj.shared
    assert shared is block.up_proj.shared

    def fails(*_):
        raise RuntimeError("no memory")

    hook = block.up_proj.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="no memory"):
        block(torch.zeros(1, 32))
    assert (shared.inside, shared.x, shared.outputs) == (False, None, {})
    hook.remove()
    block(torch.zeros(1, 32))
    assert shared.x is None
