"""Packed requests attend as they would alone, and a pass without a paged cache is transformers' own."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from graftline.stages.lm.segment_attention import segment_attention


class Layer(torch.nn.Module):
    layer_idx = 0
    num_key_value_groups = 3


class Paged:
    """Keys and values of all requests, found through `read_index`, as continuous batching's cache has them."""

    def __init__(self, keys, values):
        self.keys, self.values = keys, values
        self.read = 0

    def update(self, key_states, value_states, layer_idx, kwargs):
        (places,) = kwargs["read_index"]
        self.read = len(places)
        if not len(places):
            return key_states, value_states
        return tuple(each.index_select(0, places).transpose(0, 1)[None] for each in (self.keys, self.values))


@pytest.mark.parametrize("heads", [2, 16], ids=["few key heads", "many"])
@pytest.mark.parametrize(
    ("new", "whole"),
    [
        ([5, 3, 1, 1], [5, 9, 7, 1]),
        ([1, 1, 4, 1, 1], [300, 7, 4, 31, 900]),
        ([1] * 6, [40, 38, 33, 1, 60, 59]),
        ([5, 1, 3], [5, 1, 3]),
    ],
    ids=["parts of prompts and one token more", "lengths far apart", "one token more each", "new prompts alone"],
)
def test_every_request_attends_to_itself(new, whole, heads):
    torch.manual_seed(0)
    query = torch.randn(1, 3 * heads, sum(new), 8)
    keys, values = torch.randn(sum(whole), heads, 8), torch.randn(sum(whole), heads, 8)
    query_ends = torch.tensor([0, *new]).cumsum(0)
    key_ends = torch.tensor([0, *whole]).cumsum(0)
    places = torch.randperm(sum(whole))
    pages = [torch.empty_like(each).index_copy_(0, places, each) for each in (keys, values)]
    keys, values = (each.transpose(0, 1)[None] for each in (keys, values))
    read = places if new != whole else places[:0]
    found, _ = segment_attention(
        Layer(), query, keys, values, None, scaling=0.3, cache=Paged(*pages),
        cu_seq_lens_q=query_ends, cu_seq_lens_k={"full_attention": key_ends}, read_index=[read],
    )  # fmt: skip
    for request in range(len(new)):
        rows = slice(query_ends[request], query_ends[request + 1])
        own = slice(key_ends[request], key_ends[request + 1])
        seen = torch.ones(new[request], whole[request]).tril(whole[request] - new[request]).bool()
        alone = scaled_dot_product_attention(
            query[:, :, rows],
            keys[:, :, own].repeat_interleave(3, 1),
            values[:, :, own].repeat_interleave(3, 1),
            attn_mask=seen,
            scale=0.3,
        )
        torch.testing.assert_close(found[:, rows], alone.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_one_long_request_does_not_pad_all_others():
    heads, whole = 2, [3000, *[20] * 9]
    cache = Paged(*torch.randn(2, sum(whole), heads, 8))
    segment_attention(
        Layer(), torch.randn(1, 6, 10, 8), torch.randn(1, 2, 10, 8), torch.randn(1, 2, 10, 8), None, scaling=0.3,
        cache=cache, cu_seq_lens_q=torch.arange(11), read_index=[torch.arange(sum(whole))],
        cu_seq_lens_k={"full_attention": torch.tensor([0, *whole]).cumsum(0)},
    )  # fmt: skip
    assert cache.read < 2 * sum(whole)


def test_without_a_paged_cache_it_is_the_usual_attention():
    query, key, value = torch.randn(1, 6, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    found, _ = segment_attention(Layer(), query, key, value, None, scaling=0.3, is_causal=True)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
