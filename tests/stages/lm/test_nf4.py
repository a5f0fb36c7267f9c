"""A layer in NF4 multiplies with 16 levels a block, and goes on doing so after an evaluation."""

import warnings

import pytest
import torch

from graftline.stages.lm.nf4 import dequantise_to, dequantised, quantised

# From the paper (QLoRA, appendix E), rounded there.
LEVELS = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
LEVELS += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]


@pytest.fixture
def weight():
    return torch.randn(96, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x():
    return torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(1))


def test_each_weight_is_one_of_16_levels_of_its_blocks_largest(weight):
    found = dequantised(quantised(weight, double=False)).view(-1, 64)
    largest = weight.view(-1, 64).abs().amax(1, keepdim=True)
    levels = torch.tensor(LEVELS)
    distance = (found / largest).unsqueeze(-1).sub(levels).abs().amin(-1)
    assert distance.max() < 1e-4
    nearest = levels[(weight.view(-1, 64) / largest).unsqueeze(-1).sub(levels).abs().argmin(-1)]
    assert ((found / largest - nearest).abs() < 1e-4).float().mean() > 0.999  # the levels are rounded, ties may turn
    error = (found.view_as(weight) - weight).norm() / weight.norm()
    assert 0.08 < error < 0.10


@pytest.mark.parametrize(("double", "bits"), [(True, 4.13), (False, 4.5)])
def test_bits_a_weight(double, bits):
    layer = quantised(torch.randn(256, 576), double=double)
    state = layer.weight.quant_state
    held = [layer.weight, state.absmax] + ([state.state2.absmax] if double else [])
    size = sum(each.numel() * each.element_size() for each in held)
    assert size * 8 / (256 * 576) == pytest.approx(bits, abs=0.005) and size / (256 * 576) <= (0.53 if double else 0.57)
    assert state.nested == double


def test_the_output_is_x_times_the_dequantised_weight(weight, x):
    for double in (True, False):
        layer = quantised(weight, double=double)
        layer.bias = torch.nn.Parameter(torch.arange(96.0), requires_grad=False)
        expected = x @ dequantised(layer).T + layer.bias
        for given in (x, x.clone().requires_grad_()):
            torch.testing.assert_close(layer(given), expected, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_flows_through_the_dequantised_weight(weight, x, dtype):
    layer = quantised(weight, double=True)
    dequantise_to(layer, dtype)
    given = x.to(dtype).requires_grad_()
    output = layer(given)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    output.backward(upstream)
    expected = upstream @ dequantised(layer, dtype)
    assert output.dtype == given.grad.dtype == dtype and layer.weight.grad is None
    torch.testing.assert_close(given.grad, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 80), (6, 48), (4, 16), (5, 6)], ids=str)
def test_rows_that_are_no_multiple_of_a_block(shape):
    """bitsandbytes 0.50 takes other blocks' largest values for some, on processors with AVX-512."""
    wide = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, shape[0] + 1)[:, None]
    for double in (True, False):
        layer = quantised(wide, double=double)
        assert (layer(torch.eye(shape[1])).T - dequantised(layer)).abs().max() < 1e-6
        assert (dequantised(layer) - wide).norm() < 0.12 * wide.norm()


def test_no_dequantised_weight_is_kept_for_the_way_back(weight, x):
    layer = quantised(weight, double=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.shape) or each, lambda each: each):
        layer(x.clone().requires_grad_())
    assert kept == []


def test_an_evaluation_repacks_nothing(weight, x, monkeypatch):
    """bitsandbytes 0.50 repacks the weight in the first evaluation on processors with bf16 instructions, for a product
    without a gradient. Here every processor has them."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    layer = quantised(weight, double=True)
    before, packed = layer(x), layer.weight.data.clone()
    layer.eval()
    with torch.no_grad():
        assert torch.equal(layer(x), before)
    layer.train()
    given = x.clone().requires_grad_()
    assert torch.equal(layer(given), before) and layer(given).requires_grad
    assert torch.equal(layer.weight.data, packed) and layer.weight.quant_state.nested


@pytest.mark.parametrize("forced", [False, True])
def test_the_peer_it_guards_against_loses_the_gradient(forced):
    """What the test above would not see any more, once bitsandbytes is repaired: then the guard can go. With bf16
    instructions the repacked weight's product has no gradient; without them (where bitsandbytes repacks only if it is
    forced to) its gradient is that of shuffled weights."""
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 32, bias=False, quant_type="nf4").to("cpu")
    if forced:
        layer.support_avx512bf16_for_cpu = True
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    given = x.clone().requires_grad_()
    layer(given).sum().backward()
    right, given.grad = given.grad, None
    assert right.abs().max() > 0.1
    with torch.no_grad():
        layer.eval()(x)
    repacked = getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    assert repacked == (forced or bool(has_avx512bf16()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer.train()(given).sum().backward()
    if has_avx512bf16():
        assert given.grad is None
    elif forced:
        assert (given.grad - right).abs().max() > 0.1
    else:
        assert torch.equal(given.grad, right)


@pytest.mark.real
def test_importing_it_says_nothing():
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import graftline.stages.lm.nf4"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
