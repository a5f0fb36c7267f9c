"""The bytes are bitsandbytes', the twins' are the reference's, and the fused products are the plain ones."""

import logging

import pytest
import torch

from graftline.kernels import nf4

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bf16 is tested where a GPU computes it: the interpreter gets it wrong.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
SHAPES = [(1,), (2,), (63,), (65,), (5, 64), (7, 33), (130, 129), (31, 80), (300, 200), (577, 576), (3, 5, 7)]


@pytest.fixture(scope="module")
def peer():
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes.functional

    return bitsandbytes.functional


def drawn(shape, dtype=torch.float32, seed=0):
    """Rows of very different sizes, and every third a row of zeros, so that whole blocks are zero."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=draw) * 10 ** (4 * torch.rand(shape[0], generator=draw) - 3).view(
        -1, *[1] * (len(shape) - 1)
    )
    weight[::3] = 0 if len(weight) > 3 else weight[::3]
    return weight.to(dtype)


def held_by(packed, state):
    """What bitsandbytes quantised, as ours."""
    nested = (state.state2.absmax, state.offset) if state.nested else (None, None)
    return nf4.Nf4(packed.view(-1), state.absmax, tuple(state.shape), *nested)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bytes_are_bitsandbytes(peer, shape, dtype):
    weight = drawn(shape, dtype)
    for double in (True, False):
        found = nf4.quantise(weight, double)
        expected = held_by(*peer.quantize_4bit(weight, compress_statistics=double, quant_type="nf4"))
        assert found.shape == expected.shape and (found.coarse is None) == (not double)
        for name in ("packed", "absmax") + (("coarse", "offset") if double else ()):
            mine, theirs = getattr(found, name), getattr(expected, name)
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), name


def test_a_weight_of_zeros(peer):
    weight = torch.zeros(300, 64)
    found = nf4.quantise(weight)
    expected = held_by(*peer.quantize_4bit(weight, compress_statistics=True, quant_type="nf4"))
    assert torch.equal(found.packed, expected.packed) and torch.equal(found.absmax, expected.absmax)
    assert torch.equal(nf4.dequantise(found), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 64), (130, 128), (577, 576), (9, 10), (33, 130)], ids=str)
def test_the_weights_are_bitsandbytes(peer, shape, dtype):
    for double in (True, False):
        packed, state = peer.quantize_4bit(drawn(shape), compress_statistics=double, quant_type="nf4")
        state.dtype = dtype
        found = nf4.dequantise(held_by(packed, state), dtype)
        assert found.dtype == dtype and torch.equal(found, peer.dequantize_4bit(packed, state))


def test_a_row_that_is_no_multiple_of_a_block():
    """Where bitsandbytes 0.50.2 takes other blocks' largest values (rows of 80 with AVX-512): no level is far off."""
    weight = torch.randn(16, 80, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 17)[:, None]
    for double in (True, False):
        error = (nf4.dequantise(nf4.quantise(weight, double)) - weight).abs().view(-1, 64).amax(1)
        # Half the widest gap between two levels, and what the largest value's own 8 bits lose.
        assert (error <= (0.16 if double else 0.152) * weight.view(-1, 64).abs().amax(1)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(value):
    weight = torch.ones(4, 64)
    weight[2, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        nf4.quantise(weight)


@pytest.mark.parametrize("shape", [(1,), (7, 33), (5, 64), (30, 65)], ids=str)
def test_the_twin_quantises_alike(shape):
    for dtype in DTYPES:
        flat = drawn(shape, dtype).reshape(-1).to(DEVICE)
        for mine, theirs in zip(nf4.quantise_triton(flat), nf4.quantise_torch(flat), strict=True):
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7, 33), (5, 64), (270, 64)], ids=str)
def test_the_twin_dequantises_alike(shape, dtype):
    for double in (True, False):
        held = nf4.quantise(drawn(shape).to(DEVICE), double)
        # A GPU may round offset and product once, together.
        torch.testing.assert_close(
            nf4.dequantise_triton(held, dtype).float(),
            nf4.dequantise_torch(held, dtype).float(),
            atol=0,
            rtol=0 if DEVICE == "cpu" else 1e-2 if dtype == torch.bfloat16 else 1e-3,
        )


def products(rows, out, into, rank, dtype, double):
    draw = torch.Generator().manual_seed(rows)
    shapes = {"x": (rows, into), "gradient": (rows, out), "low": (rows, rank), "a": (rank, into), "b": (out, rank)}
    given = {name: torch.randn(shape, generator=draw).to(DEVICE, dtype) for name, shape in shapes.items()}
    given["bias"] = torch.randn(out, generator=draw).to(DEVICE, dtype)
    held = nf4.quantise(torch.randn(out, into, generator=draw).to(DEVICE), double)
    return held, given, {name: each.double() for name, each in given.items()} | {"w": nf4.dequantise(held).double()}


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "out", "into", "rank"), [(5, 70, 128, 3), (40, 96, 64, 20), (1, 17, 192, 16)])
def test_the_fused_products_are_the_plain_ones(rows, out, into, rank, dtype, double):
    """Against float64, and no further off than dequantising first."""
    held, given, exact = products(rows, out, into, rank, dtype, double)
    x, gradient, low, a, b, bias = (given[name] for name in ("x", "gradient", "low", "a", "b", "bias"))
    forward = exact["x"] @ exact["w"].T
    backward = exact["gradient"] @ exact["w"]
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    for found, expected in (
        (nf4.nf4_linear_triton(x, held, None, None, None, 1.0), forward),
        (nf4.nf4_linear_triton(x, held, bias, None, None, 1.0), forward + exact["bias"]),
        (nf4.nf4_linear_triton(x, held, bias, low, b, 0.5), forward + exact["bias"] + exact["low"] @ exact["b"].T / 2),
        (nf4.nf4_linear(x, held, bias, low, b, 0.5), forward + exact["bias"] + exact["low"] @ exact["b"].T / 2),
        (nf4.nf4_linear_backward_triton(gradient, held, None, None), backward),
        (nf4.nf4_linear_backward_triton(gradient, held, low, a), backward + exact["low"] @ exact["a"]),
        (nf4.nf4_linear_backward(gradient, held, low, a), backward + exact["low"] @ exact["a"]),
    ):
        assert found.dtype == dtype and found.shape == expected.shape
        assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_twins_take_rows_that_do_not_lie_together():
    held, given, exact = products(6, 70, 128, 8, torch.float32, True)
    x = torch.cat([given["x"], given["x"]], 1)[:, :128]
    gradient = given["gradient"].t().contiguous().t()
    b = given["b"].t().contiguous().t()
    expected = exact["x"] @ exact["w"].T + exact["low"] @ exact["b"].T
    found = nf4.nf4_linear_triton(x, held, None, given["low"], b, 1.0)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    found = nf4.nf4_linear_backward_triton(gradient, held, None, None)
    torch.testing.assert_close(found.double(), exact["gradient"] @ exact["w"], atol=1e-4, rtol=1e-5)
