"""Both implementations are torch's own graph, value and gradients."""

import pytest
import torch
from torch.nn.functional import silu

from graftline.kernels.swiglu import (
    swiglu,
    swiglu_backward_torch,
    swiglu_backward_triton,
    swiglu_torch,
    swiglu_triton,
)

TORCH, TRITON = (swiglu_torch, swiglu_backward_torch), (swiglu_triton, swiglu_backward_triton)


def drawn(shape, dtype):
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=draw) * 2).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("shape", [(1,), (7, 33), (2, 3, 700)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3)])
@pytest.mark.parametrize("ways", [TORCH, TRITON], ids=["torch", "triton"])
def test_it_is_the_graph(shape, dtype, tolerance, ways):
    gate, up, upstream = drawn(shape, dtype)
    exact = [each.double().requires_grad_() for each in (gate, up)]
    expected = silu(exact[0]) * exact[1]
    forward, backward = ways
    found = (forward(gate, up), *backward(upstream, gate, up))
    for one, other in zip(found, (expected, *torch.autograd.grad(expected, exact, upstream.double())), strict=True):
        assert one.dtype == dtype and one.shape == gate.shape
        torch.testing.assert_close(one.double(), other.detach(), atol=tolerance, rtol=tolerance)


def test_nothing_else_is_kept():
    gate, up, upstream = (each.requires_grad_() for each in drawn((5, 6), torch.float64))
    assert torch.autograd.gradcheck(swiglu, (gate, up))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        output = swiglu(gate, up)
    assert len(kept) == 2 and kept[0] is gate and kept[1] is up
    output.backward(upstream.detach())
    with torch.no_grad():
        assert torch.equal(swiglu(gate, up), output)
