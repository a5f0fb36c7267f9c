"""Log-probabilities of labels are the whole logits', whatever kind of head the model has."""

import copy
import functools

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graftline.stages.errors import InvalidField
from graftline.stages.lm.faster import faster
from graftline.stages.lm.label_logprobs import head_weight, label_logprobs
from graftline.stages.lm.upper_layers import cut_off

PLAIN, MORE = ("llama", "qwen2", "gpt2"), ("granite", "cohere")


def made(kind, dtype=torch.float32, **changed):
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, logits_scaling=3.0, **changed,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).eval()
    model.config.use_cache = False
    return model


def asked():
    ids = torch.randint(1, 50, (1, 17), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(9), torch.arange(8)])[None]
    places = torch.tensor([2, 3, 7, 9, 15])
    return {"input_ids": ids, "position_ids": positions}, places, ids[0, places + 1]


@pytest.mark.parametrize("kind", [*PLAIN, *MORE])
def test_they_are_those_of_the_whole_logits(kind):
    model, (given, places, labels) = made(kind), asked()
    assert (head_weight(model) is not None) == (kind in PLAIN)
    gradients = []
    for found in (
        label_logprobs(model, given["input_ids"], given["position_ids"], places, labels),
        torch.log_softmax(model(**given, use_cache=False).logits[0, places], -1).gather(1, labels[:, None])[:, 0],
    ):
        gradients.append([found.detach(), *torch.autograd.grad(found.sum(), list(model.parameters()))])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_head_is_known_in_either_number_format(dtype):
    model = made("llama", dtype).train()
    assert head_weight(model) is model.lm_head.weight and model.training


def test_what_stands_between_hidden_states_and_logits_is_seen():
    """A bias, a head that is adapted, a hook, a model that is not transformers' own."""

    class Own(torch.nn.Module):
        pass

    biased, adapted, hooked, heard = (made("llama") for _ in range(4))
    biased.lm_head = torch.nn.Linear(32, 50)
    adapted.lm_head = type("Adapted", (torch.nn.Linear,), {})(32, 50, bias=False)
    hooked.register_forward_hook(lambda *_: None)
    heard.lm_head.register_forward_hook(lambda *_: None)
    for model in (biased, adapted, hooked, heard, Own(), type("OwnLlama", (type(biased),), {})(biased.config)):
        assert head_weight(model) is None


def test_what_is_trained_gets_the_gradient():
    """With a frozen head, nothing but what is below it."""
    model, (given, places, labels) = made("llama"), asked()
    model.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_()
    label_logprobs(model, given["input_ids"], given["position_ids"], places, labels).sum().backward()
    assert [name for name, each in model.named_parameters() if each.grad is not None] == [
        "model.layers.1.mlp.up_proj.weight"
    ]


def test_products_are_of_few_sizes_in_bf16(monkeypatch):
    """The tokens are lengthened by some that nothing sees: values and gradients are those of the whole logits."""
    model = made("llama", torch.bfloat16)
    faster(model)
    lengths, places = (90, 61), torch.tensor([3, 50, 88, 95, 120, 149])
    ids = torch.randint(1, 50, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    sizes = []
    monkeypatch.setattr(model.model.embed_tokens, "forward", lambda given: sizes.append(given.shape) or embed(given))
    embed = functools.partial(torch.nn.functional.embedding, weight=model.model.embed_tokens.weight)
    found = label_logprobs(model, ids, positions, places, ids[0, places + 1])
    assert sizes[-1] == (1, 160) and found.shape == (6,)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, places].float()
    expected = torch.log_softmax(logits, -1).gather(1, ids[0, places + 1, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)
    for one, other in zip(
        *(torch.autograd.grad(each.sum(), list(model.parameters())) for each in (found, expected)), strict=True
    ):
        assert (one.float() - other.float()).norm() < 0.05 * other.float().norm()


def lower(model, rows, layers, dtype):
    """What the layers below make of each row by itself."""
    cut = copy.deepcopy(model)
    cut_off(cut, 2 - layers)
    found = [cut.base_model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0] for row in rows]
    return torch.cat(found).detach().to(dtype)


HEAD = [*range(3, 40)]
ALIKE, UNLIKE = [[*HEAD, 41, 42], [*HEAD, 43, 44, 45], [7, 8, 9]], [[*range(3, 12)], [*range(20, 29)]]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "olmo2"])
@pytest.mark.parametrize("rows", [ALIKE, UNLIKE], ids=["a common prefix", "none"])
@pytest.mark.parametrize("below", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_lower_layers_states_they_are_the_whole_models(kind, rows, below, dtype):
    """Values, and gradients of what is above; the layers below, and the embeddings, are not computed."""
    model = made(kind, dtype)
    faster(model)
    model.requires_grad_(False)
    upper = [each for layer in model.model.layers[below:] for each in layer.requires_grad_().parameters()]
    ids = torch.tensor([[token for row in rows for token in row]])
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    places = (positions[0] > 0).nonzero().view(-1) - 1
    asked = ids, positions, places, ids[0, places + 1]
    states, computed = lower(model, rows, below, dtype), []
    for module in (model.model.embed_tokens, *model.model.layers):
        module.register_forward_hook(lambda module, _, __: computed.append(module))
    whole = label_logprobs(model, *asked)
    computed.clear()
    cached = label_logprobs(model, *asked, states=states, below=below)
    assert computed == list(model.model.layers[below:])
    close = 1e-5 if dtype == torch.float32 else 0.04
    torch.testing.assert_close(cached, whole, atol=close, rtol=close)
    for one, other in zip(*(torch.autograd.grad(each.mean(), upper) for each in (cached, whole)), strict=True):
        assert (one.float() - other.float()).norm() <= (1e-6 if close < 0.01 else 0.05) + close * other.float().norm()


def test_states_go_to_a_model_with_more_than_a_head_too():
    model = made("llama")
    model.lm_head = torch.nn.Linear(32, 50)
    given, places, labels = asked()
    cut = lower(model, [given["input_ids"][0, :9].tolist(), given["input_ids"][0, 9:].tolist()], 1, torch.float32)
    found = label_logprobs(model, *given.values(), places, labels, states=cut, below=1)
    torch.testing.assert_close(found, label_logprobs(model, *given.values(), places, labels), atol=1e-5, rtol=1e-5)


def test_states_are_refused_where_the_upper_layers_are_not_by_themselves():
    given, places, labels = asked()
    with pytest.raises(InvalidField, match="cached_prefix"):
        label_logprobs(made("gpt2"), *given.values(), places, labels, states=torch.zeros(17, 32), below=1)
