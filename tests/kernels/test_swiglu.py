"""The Triton twin is torch's own graph, value and gradients."""

import pytest
import torch

from graftline.kernels.swiglu import swiglu, swiglu_backward_triton, swiglu_torch, swiglu_triton


def drawn(shape, dtype):
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=draw) * 2).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("shape", [(1,), (7, 33), (2, 3, 700)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3)])
def test_the_twin_is_the_reference(shape, dtype, tolerance):
    gate, up, upstream = drawn(shape, dtype)
    exact = [each.double().requires_grad_() for each in (gate, up)]
    expected = swiglu_torch(*exact)
    found = (swiglu_triton(gate, up), *swiglu_backward_triton(upstream, gate, up))
    for one, other in zip(found, (expected, *torch.autograd.grad(expected, exact, upstream.double())), strict=True):
        assert one.dtype == dtype and one.shape == gate.shape
        torch.testing.assert_close(one.double(), other.detach(), atol=tolerance, rtol=tolerance)


def test_on_a_cpu_it_is_the_reference():
    gate, up, _ = drawn((5, 6), torch.float32)
    assert torch.equal(swiglu(gate, up), torch.nn.functional.silu(gate) * up)
