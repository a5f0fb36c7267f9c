"""The fused sum is the sum, value and gradient, for one layer or several that share their input; it keeps no weight."""

import weakref

import pytest
import torch

from graftline.kernels import nf4
from graftline.kernels.lora_linear import (
    LoraLayer,
    add_low_rank,
    add_low_rank_triton,
    frozen_linear,
    lora_linear,
    row_blocks,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALES = (0.7, 2.0, 1.3)
OUTS, RANKS = (6, 4, 10), (3, 1, 5)
"""Of layers that share an input: none is like another."""


def drawn(count=1, dtype=torch.float64, bias=True):
    """x [2, 5, 8], and each layer's w, a, b and bias."""
    draw = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    given = {"x": tensor(2, 5, 8)}
    for index, (out, rank) in enumerate(zip(OUTS[:count], RANKS, strict=False)):
        given |= {f"w{index}": tensor(out, 8), f"a{index}": tensor(rank, 8), f"b{index}": tensor(out, rank)}
        given |= {f"bias{index}": tensor(out)} if bias else {}
    return given


def layers(given):
    return [
        LoraLayer(
            lambda index=index: given[f"w{index}"],
            given.get(f"bias{index}"),
            given[f"a{index}"],
            given[f"b{index}"],
            scale,
        )
        for index, scale in enumerate(SCALES)
        if f"a{index}" in given
    ]


def reference(given):
    x = given["x"]
    return tuple(
        torch.nn.functional.linear(x, given[f"w{index}"], layer.bias) + layer.scale * ((x @ layer.a.T) @ layer.b.T)
        for index, layer in enumerate(layers(given))
    )


def trained(given, names="xab"):
    return [name for name in given if name != "x" and name[0] in names and "bias" not in name] + ["x"] * ("x" in names)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_it_is_the_sum_and_so_are_its_gradients(dtype, tolerance, bias, count):
    """bf16 against float64: its own autograd is as far off."""
    fused = drawn(count, dtype, bias)
    exact = {name: each.double() for name, each in fused.items()}
    for given in (fused, exact):
        for name in trained(given):
            given[name].requires_grad_()
    outputs, expected = lora_linear(fused["x"], layers(fused)), reference(exact)
    draw = torch.Generator().manual_seed(1)
    upstream = [torch.randn(each.shape, generator=draw).to(dtype) for each in expected]
    torch.autograd.backward(outputs, upstream)
    torch.autograd.backward(expected, [each.double() for each in upstream])
    for found, wanted in zip(outputs, expected, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    for name in trained(fused):
        assert fused[name].grad.dtype == dtype and fused[name].grad.shape == fused[name].shape
        torch.testing.assert_close(fused[name].grad.double(), exact[name].grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_may_be_more_than_a_block(bias, monkeypatch):
    """Cut in blocks of like size, every row is computed once."""
    monkeypatch.setattr("graftline.kernels.lora_linear.ROWS", 4)
    given, whole = drawn(3, bias=bias), drawn(3, bias=bias)
    assert [block.stop - block.start for block in row_blocks(given["x"].view(-1, 8))] == [3, 3, 4]
    for each in (given, whole):
        for name in trained(each):
            each[name].requires_grad_()
    sum(each.square().sum() for each in lora_linear(given["x"], layers(given))).backward()
    sum(each.square().sum() for each in reference(whole)).backward()
    for name in trained(given):
        torch.testing.assert_close(given[name].grad, whole[name].grad, atol=1e-9, rtol=1e-9)
    frozen = frozen_linear(given["x"], lambda: given["w0"], given.get("bias0"))
    torch.testing.assert_close(frozen, torch.nn.functional.linear(given["x"], given["w0"], given.get("bias0")))


@pytest.mark.parametrize("count", [1, 3])
def test_gradients_against_differences(count):
    given = drawn(count)
    names = trained(given)
    inputs = tuple(given[name].requires_grad_() for name in names)

    def outputs(*values):
        now = given | dict(zip(names, values, strict=True))
        return lora_linear(now["x"], layers(now))

    assert torch.autograd.gradcheck(outputs, inputs)


@pytest.mark.parametrize("names", ["x", "a", "b", "ab"])
def test_only_what_trains_gets_a_gradient(names):
    given = drawn(3)
    for name in trained(given, names):
        given[name].requires_grad_()
    sum(each.sum() for each in lora_linear(given["x"], layers(given))).backward()
    assert {name for name, each in given.items() if each.grad is not None} == set(trained(given, names))


def test_an_output_that_is_in_no_loss_takes_no_part():
    given, alone = drawn(3), drawn(3)
    for each in (given, alone):
        for name in trained(each):
            each[name].requires_grad_()
    lora_linear(given["x"], layers(given))[1].square().sum().backward()
    reference(alone)[1].square().sum().backward()
    assert [given[name].grad is None for name in ("a0", "b0", "a1", "b1", "a2")] == [True, True, False, False, True]
    for name in ("x", "a1", "b1"):
        torch.testing.assert_close(given[name].grad, alone[name].grad)


def test_each_weight_is_asked_for_twice_and_kept_never():
    given = drawn(2)
    asked = []

    def weight(name):
        dense = given[name].clone()
        asked.append(weakref.ref(dense))
        return dense

    made = [
        LoraLayer(lambda index=index: weight(f"w{index}"), None, layer.a.requires_grad_(), layer.b, 1.0)
        for index, layer in enumerate(layers(given))
    ]
    given["x"].requires_grad_()
    outputs = lora_linear(given["x"], made)
    assert len(asked) == 2 and not any(each() is not None for each in asked)
    sum(each.sum() for each in outputs).backward()
    assert len(asked) == 4 and not any(each() is not None for each in asked)


def test_without_gradients():
    given = drawn(3)
    with torch.no_grad():
        outputs = lora_linear(given["x"], layers(given))
    for found, wanted in zip(outputs, reference(given), strict=True):
        torch.testing.assert_close(found, wanted)
        assert not found.requires_grad


def test_a_quantised_weight_is_its_dequantised_one():
    draw = torch.Generator().manual_seed(3)
    held = [nf4.quantise(torch.randn(out, 64, generator=draw)) for out in (32, 16)]
    dense = [nf4.dequantise(each) for each in held]
    factors = [(torch.randn(4, 64, generator=draw), torch.randn(len(each), 4, generator=draw)) for each in dense]
    found = []
    for weights in (held, [lambda: dense[0], lambda: dense[1]]):
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(4)).requires_grad_()
        outputs = lora_linear(x, [LoraLayer(w, None, a, b, 2.0) for w, (a, b) in zip(weights, factors, strict=True)])
        torch.cat(outputs, 1).square().sum().backward()
        found.append((*outputs, x.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("quantised", [True, False])
def test_a_frozen_layer_alone(quantised):
    draw = torch.Generator().manual_seed(5)
    held = nf4.quantise(torch.randn(32, 64, generator=draw))
    dense, bias = nf4.dequantise(held), torch.randn(32, generator=draw)
    asked = []

    def weight():
        asked.append(weakref.ref(copy := dense.clone()))
        return copy

    x = torch.randn(2, 3, 64, generator=draw).requires_grad_()
    output = frozen_linear(x, held if quantised else weight, bias)
    upstream = torch.randn(output.shape, generator=draw)
    output.backward(upstream)
    torch.testing.assert_close(output, torch.nn.functional.linear(x, dense, bias))
    torch.testing.assert_close(x.grad, upstream @ dense)
    assert quantised or (len(asked) == 2 and asked[0]() is None)


@pytest.mark.parametrize(("rows", "into", "out", "rank"), [(5, 70, 40, 3), (1, 64, 130, 16), (70, 33, 17, 20)])
def test_the_twin_adds_alike(rows, into, out, rank):
    draw = torch.Generator().manual_seed(rows)
    shapes = {"output": (rows, out), "x": (rows, into), "a": (rank, into), "b": (out, rank)}
    exact = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    wanted_low = exact["x"] @ exact["a"].T
    wanted = exact["output"] + 0.5 * wanted_low @ exact["b"].T
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 5e-3)):
        for add in (add_low_rank, add_low_rank_triton):
            given = {name: each.to(DEVICE, dtype) for name, each in exact.items()}
            low = add(given["output"], given["x"], given["a"], given["b"], 0.5)
            for found, expected in ((low, wanted_low), (given["output"], wanted)):
                assert found.dtype == dtype
                assert (found.double().cpu() - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_twin_takes_what_does_not_lie_together():
    """What flows back to x is the same sum with the transposed factors."""
    draw = torch.Generator().manual_seed(9)
    of_x, gradient = torch.randn(6, 20, generator=draw), torch.randn(18, 6, generator=draw).t()
    a, b = torch.randn(3, 20, generator=draw), torch.randn(18, 3, generator=draw)
    found, wanted = of_x.clone().to(DEVICE), of_x + 1.5 * (gradient @ b) @ a
    low = add_low_rank_triton(found, gradient.to(DEVICE), b.t().to(DEVICE), a.t().to(DEVICE), 1.5)
    torch.testing.assert_close(low.cpu(), gradient @ b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-4, rtol=1e-5)
