"""Packed rows have the logits of separate ones, in every kind of model that is made to attend this way."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graftline.kernels.packed_attention import Segment
from graftline.stages.lm.packed_attention import LIKE_LLAMA, NAME, segments, use_packed_attention

LENGTHS = [7, 1, 12, 5]


def made(kind, **changed):
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=None, pad_token_id=0, **changed,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model.config.use_cache = False
    return model


def packed(lengths):
    ids = torch.randint(1, 50, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": ids, "position_ids": positions}


@pytest.mark.parametrize("kind", LIKE_LLAMA)
def test_packed_rows_are_separate_rows(kind):
    model, given = made(kind), packed(LENGTHS)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=ids).logits[0] for ids in given["input_ids"].split(LENGTHS, 1)])
        masked = model(**given).logits[0]
        assert use_packed_attention(model) and model.config._attn_implementation == NAME
        found = model(**given).logits[0]
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, masked, atol=1e-5, rtol=1e-5)


def test_positions_say_who_sees_whom():
    """A run of positions comes after the latest tokens before its first; after nothing where there is a gap."""

    def said(*positions, rows=1):
        return segments(torch.tensor([positions]), rows)

    assert said(0, 1, 2, 0, 1) == (Segment(0, 3), Segment(3, 2))
    assert said(0, 1, 2, 3, 2, 3) == (Segment(0, 4), Segment(4, 2, ((0, 2),)))
    assert said(0, 1, 2, 1, 2, 3, 3, 1, 0) == (
        Segment(0, 3),
        Segment(3, 3, ((0, 1),)),
        Segment(6, 1, ((0, 1), (3, 2))),
        Segment(7, 1, ((0, 1),)),
        Segment(8, 1),
    )
    assert said(5, 6, 3, 4, 7, 6, 7) == (Segment(0, 2), Segment(2, 2), Segment(4, 1), Segment(5, 2))
    assert said(5, 6, 7, 6) == (Segment(0, 3), Segment(3, 1, ((0, 1),)))
    assert said(1, 2, 3, rows=2) == (Segment(0, 3), Segment(3, 3))
    assert segments(torch.tensor([[0, 1, 2], [1, 2, 3]]), 2) == (Segment(0, 3), Segment(3, 3))


@pytest.mark.parametrize("kind", LIKE_LLAMA)
def test_a_tree_is_its_branches(kind):
    model = made(kind)
    use_packed_attention(model)
    ids = torch.randint(1, 50, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 3, 4, 3, 4, 5, 6]])).logits[0]
        one, other = (model(input_ids=each).logits[0] for each in (ids[:, :5], ids[:, [0, 1, 2, 5, 6, 7, 8]]))
    torch.testing.assert_close(found, torch.cat([one, other[3:]]), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_masked_attention():
    gradients = []
    for fast in (False, True):
        model = made("llama")
        if fast:
            use_packed_attention(model)
        model(**packed(LENGTHS)).logits.square().sum().backward()
        gradients.append([each.grad for each in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_padding_masks_and_caches_mean_what_they_did():
    plain, fast = made("llama"), made("llama")
    use_packed_attention(fast)
    ids = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(2))
    padding = torch.ones(3, 9, dtype=torch.long)
    padding[1, :4] = padding[2, 6:] = 0
    tree = torch.zeros(1, 1, 9, 9).masked_fill_(torch.ones(9, 9).triu(1).bool(), -1e9)
    tree[..., 5, 2] = -1e9
    for given in (
        {"input_ids": ids},
        {"input_ids": ids, "attention_mask": padding},
        {"input_ids": ids[:1], "attention_mask": tree, "position_ids": torch.arange(9)[None]},
    ):
        with torch.no_grad():
            seen = torch.ones(3, 9).bool() if "attention_mask" not in given else padding.bool()
            seen = seen if len(given["input_ids"]) == 3 else seen[:1]
            torch.testing.assert_close(fast(**given).logits[seen], plain(**given).logits[seen], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        texts = [
            each.generate(ids, attention_mask=padding.flip(1), max_new_tokens=6, do_sample=False, use_cache=True)
            for each in (plain, fast)
        ]
    assert torch.equal(*texts)


def test_models_that_attend_otherwise_stay_as_they_are():
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=4, vocab_size=50)
    other = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    windowed = made("mistral")
    windowed.config.sliding_window = 4
    dropping = made("llama", attention_dropout=0.1)
    for model in (other, windowed, dropping):
        assert not use_packed_attention(model) and model.config._attn_implementation == "sdpa"
