"""The fused sum is the sum, value and gradient, and keeps no weight."""

import weakref

import pytest
import torch

from graftline.kernels.lora_linear import lora_linear


def drawn(dtype=torch.float64, bias=True, rank=3):
    draw = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 5, 8), "w": (6, 8), "a": (rank, 8), "b": (6, rank)} | ({"bias": (6,)} if bias else {})
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def reference(given, scale):
    x, w, a, b = (given[name] for name in "xwab")
    return torch.nn.functional.linear(x, w, given.get("bias")) + scale * ((x @ a.T) @ b.T)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_it_is_the_sum_and_so_are_its_gradients(dtype, tolerance, bias):
    fused, plain = drawn(dtype, bias), drawn(dtype, bias)
    for given in (fused, plain):
        for name in "xab":
            given[name].requires_grad_()
    output = lora_linear(fused["x"], lambda: fused["w"], fused.get("bias"), fused["a"], fused["b"], 0.7)
    expected = reference(plain, 0.7)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    output.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)
    for name in "xab":
        assert fused[name].grad.dtype == dtype and fused[name].grad.shape == fused[name].shape
        torch.testing.assert_close(fused[name].grad, plain[name].grad, atol=tolerance, rtol=tolerance)


def test_gradients_against_differences():
    given = drawn()
    inputs = tuple(given[name].requires_grad_() for name in "xab")
    assert torch.autograd.gradcheck(
        lambda x, a, b: lora_linear(x, lambda: given["w"], given["bias"], a, b, 1.3), inputs
    )


@pytest.mark.parametrize("trained", ["x", "a", "b", "ab"])
def test_only_what_trains_gets_a_gradient(trained):
    given = drawn()
    for name in trained:
        given[name].requires_grad_()
    lora_linear(given["x"], lambda: given["w"], None, given["a"], given["b"], 1.0).sum().backward()
    assert {name for name in "xabw" if given[name].grad is not None} == set(trained)


def test_the_weight_is_asked_for_twice_and_kept_never():
    given = drawn()
    asked = []

    def weight():
        dense = given["w"].clone()
        asked.append(weakref.ref(dense))
        return dense

    given["x"].requires_grad_()
    given["a"].requires_grad_()
    output = lora_linear(given["x"], weight, None, given["a"], given["b"], 1.0)
    assert len(asked) == 1 and asked[0]() is None
    output.sum().backward()
    assert len(asked) == 2 and asked[1]() is None


def test_without_gradients():
    given = drawn()
    with torch.no_grad():
        output = lora_linear(given["x"], lambda: given["w"], given["bias"], given["a"], given["b"], 2.0)
    torch.testing.assert_close(output, reference(given, 2.0))
    assert not output.requires_grad
