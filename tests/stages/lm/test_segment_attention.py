"""Packed requests attend as they would alone, and a pass without a paged cache is transformers' own."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from graftline.stages.lm.segment_attention import segment_attention


class Layer(torch.nn.Module):
    layer_idx = 0
    num_key_value_groups = 3


class Paged:
    """Adds earlier keys and values of every request, as continuous batching's cache does."""

    def __init__(self, keys, values, ends):
        self.keys, self.values, self.ends = keys, values, ends

    def update(self, key_states, value_states, layer_idx, kwargs):
        kwargs["cu_seq_lens_k"] = self.ends
        return self.keys, self.values


def test_every_request_attends_to_itself():
    """A prompt, a prompt's second part, and two requests that get one token more."""
    torch.manual_seed(0)
    new, whole = [5, 3, 1, 1], [5, 9, 7, 1]
    query = torch.randn(1, 6, sum(new), 8)
    keys, values = torch.randn(1, 2, sum(whole), 8), torch.randn(1, 2, sum(whole), 8)
    query_ends = torch.tensor([0, *new]).cumsum(0)
    key_ends = torch.tensor([0, *whole]).cumsum(0)
    found, _ = segment_attention(
        Layer(), query, keys, values, None, scaling=0.3, cache=Paged(keys, values, key_ends), cu_seq_lens_q=query_ends
    )
    for request in range(4):
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


def test_without_a_paged_cache_it_is_the_usual_attention():
    query, key, value = torch.randn(1, 6, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    found, _ = segment_attention(Layer(), query, key, value, None, scaling=0.3, is_causal=True)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
