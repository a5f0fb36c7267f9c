"""Turned heads are transformers' own, value and gradient, and the Triton twin is the reference."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from graftline.kernels import rope as kernel
from graftline.kernels.rope import rope

FORMATS = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.01)]


def drawn(rows=2, tokens=7, size=8, dtype=torch.float64, one=False):
    draw = torch.Generator().manual_seed(0)
    heads = [torch.randn(rows, tokens, count, size, generator=draw, dtype=torch.float64) for count in (6, 2, 6, 2)]
    angle = torch.rand(1 if one else rows, tokens, size // 2, generator=draw, dtype=torch.float64) * 6
    angle = torch.cat([angle, angle], -1)
    query, key, *upstream = (each.to(dtype) for each in heads)
    return (query.requires_grad_(), key.requires_grad_()), upstream, (angle.cos().to(dtype), angle.sin().to(dtype))


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
def test_it_is_transformers_own(dtype, tolerance, one):
    given, upstream, tables = drawn(dtype=dtype, one=one)
    exact = [each.detach().double().requires_grad_() for each in given]
    turned = rope(*given, *tables)
    expected = apply_rotary_pos_emb(*(each.transpose(1, 2) for each in exact), *(each.double() for each in tables))
    torch.autograd.backward(turned, upstream)
    torch.autograd.backward(expected, [each.double().transpose(1, 2) for each in upstream])
    pairs = [(found, right.transpose(1, 2)) for found, right in zip(turned, expected, strict=True)]
    pairs += [(found.grad, right.grad) for found, right in zip(given, exact, strict=True)]
    for found, right in pairs:
        assert found.dtype == dtype and found.shape == right.shape
        assert (found.detach() - right.detach()).norm() <= tolerance * right.norm()


def test_gradients_against_differences():
    given, _, tables = drawn(tokens=3, size=4)
    assert torch.autograd.gradcheck(lambda query, key: rope(query, key, *tables), given)


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3)])
def test_the_twin_is_the_reference(dtype, tolerance, back, one):
    for size in (8, 40):
        (query, key), _, tables = drawn(size=size, dtype=dtype, one=one)
        for heads in (query, key, query.repeat(1, 1, 3, 1)):
            found = kernel.turned_triton(heads.detach(), *tables, back=back)
            expected = kernel.turned_torch(heads.detach(), *tables, back=back)
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
