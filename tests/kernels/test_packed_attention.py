"""Every sequence attends to itself as it would alone, value and gradient, however the sequences are grouped."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from graftline.kernels import packed_attention as kernel
from graftline.kernels.packed_attention import Segment, packed_attention, short_attention

SIZE = 8
PACKS = ([5], [1, 1, 1], [4, 4, 4], [3, 9, 5, 1, 30, 7], [40, 2, 41])
TREES = {
    "one trunk": [(6, []), (3, [(0, 4)]), (5, [(0, 4)]), (2, [(0, 6)])],
    "branches of branches": [(9, []), (4, [(0, 3)]), (7, [(0, 3), (9, 2)]), (1, [(0, 3), (9, 2), (13, 6)]), (8, [])],
    "beside one that is alone": [(5, []), (30, []), (4, [(5, 29)]), (33, [(5, 17)])],
}
"""Segments: how many tokens, and the spans before them."""


def drawn(tokens, heads, key_heads, dtype=torch.float64):
    draw = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, heads, SIZE), (tokens, key_heads, SIZE), (tokens, key_heads, SIZE), (tokens, heads, SIZE))
    *inputs, upstream = (torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes)
    return [each.requires_grad_() for each in inputs], upstream


def tree(spans):
    """Segments one after another."""
    segments = []
    for length, before in spans:
        start = segments[-1].start + segments[-1].length if segments else 0
        segments.append(Segment(start, length, tuple(before)))
    return segments


def apart(lengths):
    return tree([(length, []) for length in lengths])


def one_by_one(query, key, value, segments, scale):
    """Each segment's whole sequence by itself, and of it what is the segment's own."""
    outputs = []
    for segment in segments:
        q, k, v = (each[segment.sequence()].transpose(0, 1)[None].double() for each in (query, key, value))
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[0].transpose(0, 1)
        outputs.append(seen[segment.earlier :])
    return torch.cat(outputs)


def compared(attend, segments, heads, key_heads, dtype=torch.float64):
    """The largest difference of the output and of each gradient, in units of its largest number, if that is above 1."""
    inputs, upstream = drawn(sum(segment.length for segment in segments), heads, key_heads, dtype)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    output = attend(*inputs, segments, 0.4)
    expected = one_by_one(*exact, segments, 0.4)
    assert output.dtype == dtype and output.shape == expected.shape
    output.backward(upstream)
    expected.backward(upstream.double())
    pairs = [(output.detach(), expected.detach())]
    pairs += [(each.grad, one.grad) for each, one in zip(inputs, exact, strict=True)]
    return max(float((found - right).abs().max() / right.abs().max().clamp(min=1)) for found, right in pairs)


@pytest.mark.parametrize("lengths", PACKS, ids=str)
@pytest.mark.parametrize("heads", [(6, 2), (3, 3), (4, 1)])
def test_it_is_each_sequence_by_itself(lengths, heads):
    assert compared(short_attention, apart(lengths), *heads) < 1e-12


@pytest.mark.parametrize("spans", TREES.values(), ids=TREES)
@pytest.mark.parametrize("heads", [(6, 2), (3, 3)])
@pytest.mark.parametrize("block", [256, 4])
def test_what_sequences_have_in_common_is_given_once(monkeypatch, spans, heads, block):
    monkeypatch.setattr(kernel, "BLOCK", block)
    monkeypatch.setattr(kernel, "LONGEST", {torch.float32: 8})
    kernel._planned.cache_clear()
    try:
        assert compared(short_attention, tree(spans), *heads) < 1e-12
        assert compared(packed_attention, tree(spans), *heads) < 1e-12
    finally:
        kernel._planned.cache_clear()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_in_the_number_formats_it_runs_in(dtype, tolerance):
    assert compared(short_attention, apart([20, 31, 7]), 6, 2, dtype) < tolerance
    assert compared(short_attention, tree(TREES["branches of branches"]), 6, 2, dtype) < tolerance


def test_long_sequences_are_cut_into_blocks(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 8)
    kernel._planned.cache_clear()
    try:
        assert kernel._cuts(30) == [(0, 7), (7, 15), (15, 22), (22, 30)]
        assert compared(short_attention, apart([30, 3, 29, 16, 8, 9]), 6, 2) < 1e-12
    finally:
        kernel._planned.cache_clear()


def test_long_and_short_sequences_go_their_own_ways(monkeypatch):
    monkeypatch.setattr(kernel, "LONGEST", {torch.float32: 10})
    assert compared(packed_attention, apart([4, 30, 7, 25, 10]), 6, 2) < 1e-12
    assert compared(packed_attention, apart([30, 25]), 6, 2) < 1e-12


def test_without_a_gradient(monkeypatch):
    monkeypatch.setattr(kernel, "LONGEST_FORWARD", 6)
    inputs, _ = drawn(30, 6, 2)
    with torch.no_grad():
        found = packed_attention(*inputs, apart([5, 20, 5]), 0.4)
    torch.testing.assert_close(found, one_by_one(*inputs, apart([5, 20, 5]), 0.4).detach())
    assert not found.requires_grad


def test_a_token_sees_nothing_of_other_sequences_and_nothing_that_comes():
    inputs, _ = drawn(20, 6, 2)
    with torch.no_grad():
        before = short_attention(*inputs, apart([6, 9, 5]), 0.4)
        for each in inputs:
            each[10:15] += 1.0
        after = short_attention(*inputs, apart([6, 9, 5]), 0.4)
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [10 <= token < 15 for token in range(20)]


def test_sequences_of_like_length_are_grouped():
    """Longest first; padding 990 tokens to 1000 is cheaper than a batch of their own."""
    assert kernel._alike(apart([40, 44, 41, 43])) == [[0, 1, 2, 3]]
    assert kernel._alike(apart([1000, 10, 990, 11])) == [[0, 2], [1, 3]]
    assert kernel._alike(apart([1000, 10, 600, 11])) == [[0], [2], [1, 3]]


def test_the_same_pack_gives_the_same_bits():
    def once():
        inputs, upstream = drawn(60, 6, 2, torch.float32)
        output = packed_attention(*inputs, apart([10, 13, 30, 7]), 0.4)
        output.backward(upstream)
        return [output, *(each.grad for each in inputs)]

    assert all(torch.equal(one, other) for one, other in zip(once(), once(), strict=True))
