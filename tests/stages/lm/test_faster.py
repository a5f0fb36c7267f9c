"""A model made faster computes what it did, values and gradients, in every kind of model we know; others are left."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graftline.stages.lm.faster import faster

KINDS = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "phi3", "olmo2", "gpt2", "gemma")


def made(kind, dtype=torch.float32, **changed):
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=None, pad_token_id=0, **changed,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms are ones and biases zeros at first
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.config.use_cache = False
    return model


def passed(model, **given):
    logits = model(**given).logits
    logits.float().square().mean().backward()
    return [logits.detach(), *(each.grad for each in model.parameters())]


def packed(lengths=(9, 4, 12)):
    ids = torch.randint(1, 50, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "position_ids": torch.cat([torch.arange(length) for length in lengths])[None]}


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_stay(kind):
    plain = made(kind)
    fast = copy.deepcopy(plain)
    faster(fast)
    for given in (packed(), {"input_ids": torch.randint(1, 50, (3, 7)), "attention_mask": torch.ones(3, 7)}):
        for found, expected in zip(passed(fast, **given), passed(plain, **given), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_in_bf16_they_are_as_exact_as_transformers_own(kind):
    plain, exact = made(kind, torch.bfloat16), made(kind)
    exact.load_state_dict({name: each.float() for name, each in plain.state_dict().items()})
    fast = copy.deepcopy(plain)
    faster(fast)
    right = passed(exact, **packed())

    def error(model):
        found = passed(model, **packed())
        assert {each.dtype for each in found} == {torch.bfloat16}
        errors = [(each.float() - best).norm() / best.norm() for each, best in zip(found, right, strict=True)]
        return float(sum(errors)) / len(errors)

    assert error(fast) < 1.2 * error(plain)


def test_generation_with_a_cache_stays():
    plain = made("llama")
    fast = copy.deepcopy(plain)
    faster(fast)
    ids = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(3))
    texts = [
        each.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, use_cache=True)
        for each in (plain, fast)
    ]
    assert torch.equal(*texts)
