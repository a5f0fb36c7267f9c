"""The norm is transformers' own, value and gradients, and its Triton twin is its reference."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from graftline.kernels import rms_norm as kernel
from graftline.kernels.rms_norm import rms_norm

EPS = 1e-5
SHAPES = ((1, 16), (3, 5), (7, 64), (2, 33, 100))
FORMATS = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]


def drawn(shape, dtype=torch.float64, scale=3.0):
    draw = torch.Generator().manual_seed(len(shape))
    x, upstream = (torch.randn(shape, generator=draw, dtype=torch.float64) * scale for _ in range(2))
    weight = torch.rand(shape[-1], generator=draw, dtype=torch.float64) + 0.5
    return (x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()), upstream.to(dtype)


def plain(x, weight):
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
def test_values_and_gradients(shape, dtype, tolerance):
    given, upstream = drawn(shape, dtype)
    exact = [each.detach().double().requires_grad_() for each in given]
    output, expected = rms_norm(*given, EPS), plain(*exact)
    output.backward(upstream)
    expected.backward(upstream.double())
    pairs = [(output, expected), *((each.grad, one.grad) for each, one in zip(given, exact, strict=True))]
    for found, right in pairs:
        assert found.dtype == dtype and found.shape == right.shape
        assert (found.detach() - right.detach()).norm() <= tolerance * right.norm()


def test_gradients_against_differences():
    given, _ = drawn((3, 6), scale=1.0)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, EPS), given)


def test_it_is_as_exact_as_transformers_own_in_bf16():
    (x, weight), upstream = drawn((40, 576), torch.bfloat16)
    module = LlamaRMSNorm(576, EPS)
    module.weight.data = weight.detach()
    exact = x.detach().double().requires_grad_()
    right = plain(exact, weight.detach().double())
    (gradient,) = torch.autograd.grad(right, exact, upstream.double())
    right = right.detach()

    def errors(norm):
        value = norm(x)
        (found,) = torch.autograd.grad(value, x, upstream)
        return [
            float((one - other).detach().norm() / other.norm()) for one, other in ((value, right), (found, gradient))
        ]

    for found, theirs in zip(errors(lambda x: rms_norm(x, weight, EPS)), errors(module), strict=True):
        assert found <= 1.05 * theirs


@pytest.mark.parametrize("trained", [(True, False), (False, True), (False, False)])
def test_only_what_trains_gets_a_gradient(trained):
    given, upstream = drawn((4, 8))
    for each, trains in zip(given, trained, strict=True):
        each.requires_grad_(trains)
    output = rms_norm(*given, EPS)
    assert output.requires_grad == any(trained)
    if any(trained):
        output.backward(upstream)
    assert [each.grad is not None for each in given] == list(trained)


@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (70, 33)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_the_twin_is_the_reference(shape, dtype, tolerance):
    (x, weight), upstream = drawn(shape, dtype)
    x, weight = x.detach(), weight.detach()
    found, scale = kernel.forward_triton(x, weight, EPS)
    expected, right = kernel.forward_torch(x.float(), weight.float(), EPS)
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(scale, right, atol=1e-5, rtol=1e-5)
    found = kernel.backward_triton(upstream, x, weight, scale, True, True)
    expected = kernel.backward_torch(upstream.float(), x.float(), weight.float(), scale, True, True)
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other).norm() <= tolerance * other.norm() + 1e-6
    assert kernel.backward_triton(upstream, x, weight, scale, True, False)[1] is None
