"""Every sequence attends to itself as it would alone, value and gradient, however the sequences are grouped."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from graftline.kernels import packed_attention as kernel
from graftline.kernels.packed_attention import packed_attention, short_attention

SIZE = 8
PACKS = ([5], [1, 1, 1], [4, 4, 4], [3, 9, 5, 1, 30, 7], [40, 2, 41])


def drawn(tokens, heads, key_heads, dtype=torch.float64):
    draw = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, heads, SIZE), (tokens, key_heads, SIZE), (tokens, key_heads, SIZE), (tokens, heads, SIZE))
    *inputs, upstream = (torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes)
    return [each.requires_grad_() for each in inputs], upstream


def one_by_one(query, key, value, lengths, scale):
    outputs = []
    for q, k, v in zip(*(each.split(lengths) for each in (query, key, value)), strict=True):
        q, k, v = (each.transpose(0, 1)[None].double() for each in (q, k, v))
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        outputs.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[0].transpose(0, 1))
    return torch.cat(outputs)


def compared(attend, lengths, heads, key_heads, dtype=torch.float64):
    """The largest difference of the output and of each gradient, in units of its largest number, if that is above 1."""
    inputs, upstream = drawn(sum(lengths), heads, key_heads, dtype)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    output = attend(*inputs, lengths, 0.4)
    expected = one_by_one(*exact, lengths, 0.4)
    assert output.dtype == dtype and output.shape == expected.shape
    output.backward(upstream)
    expected.backward(upstream.double())
    pairs = [(output.detach(), expected.detach())]
    pairs += [(each.grad, one.grad) for each, one in zip(inputs, exact, strict=True)]
    return max(float((found - right).abs().max() / right.abs().max().clamp(min=1)) for found, right in pairs)


@pytest.mark.parametrize("lengths", PACKS, ids=str)
@pytest.mark.parametrize("heads", [(6, 2), (3, 3), (4, 1)])
def test_it_is_each_sequence_by_itself(lengths, heads):
    assert compared(short_attention, lengths, *heads) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_in_the_number_formats_it_runs_in(dtype, tolerance):
    assert compared(short_attention, [20, 31, 7], 6, 2, dtype) < tolerance


def test_long_sequences_are_cut_into_blocks(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 8)
    kernel._groups.cache_clear()
    try:
        assert kernel._cuts(30) == [(0, 7), (7, 15), (15, 22), (22, 30)]
        assert compared(short_attention, [30, 3, 29, 16, 8, 9], 6, 2) < 1e-12
    finally:
        kernel._groups.cache_clear()


def test_long_and_short_sequences_go_their_own_ways(monkeypatch):
    monkeypatch.setattr(kernel, "LONGEST", {torch.float32: 10})
    assert compared(packed_attention, [4, 30, 7, 25, 10], 6, 2) < 1e-12
    assert compared(packed_attention, [30, 25], 6, 2) < 1e-12


def test_without_a_gradient(monkeypatch):
    monkeypatch.setattr(kernel, "LONGEST_FORWARD", 6)
    inputs, _ = drawn(30, 6, 2)
    with torch.no_grad():
        found = packed_attention(*inputs, [5, 20, 5], 0.4)
    torch.testing.assert_close(found, one_by_one(*inputs, [5, 20, 5], 0.4).detach())
    assert not found.requires_grad


def test_a_token_sees_nothing_of_other_sequences_and_nothing_that_comes():
    inputs, _ = drawn(20, 6, 2)
    with torch.no_grad():
        before = short_attention(*inputs, [6, 9, 5], 0.4)
        for each in inputs:
            each[10:15] += 1.0
        after = short_attention(*inputs, [6, 9, 5], 0.4)
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [10 <= token < 15 for token in range(20)]


def test_sequences_of_like_length_are_grouped():
    """Longest first; padding 990 tokens to 1000 is cheaper than a batch of their own."""
    assert kernel._alike([40, 44, 41, 43]) == [[0, 1, 2, 3]]
    assert kernel._alike([1000, 10, 990, 11]) == [[0, 2], [1, 3]]
    assert kernel._alike([1000, 10, 600, 11]) == [[0], [2], [1, 3]]


def test_the_same_pack_gives_the_same_bits():
    def once():
        inputs, upstream = drawn(60, 6, 2, torch.float32)
        output = packed_attention(*inputs, [10, 13, 30, 7], 0.4)
        output.backward(upstream)
        return [output, *(each.grad for each in inputs)]

    assert all(torch.equal(one, other) for one, other in zip(once(), once(), strict=True))
