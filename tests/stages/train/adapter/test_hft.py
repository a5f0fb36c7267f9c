import json

import pytest
import torch

from graftline.stages.train import AdamW, Full, Hft, Sft, Shuffled
from graftline.stages.train.collectives import Alone
from graftline.stages.train.loop import train
from graftline.stages.train.source import IndexPlan

IDS = torch.randint(3, 64, (1, 12), generator=torch.Generator().manual_seed(1))


def deep(layers):
    """A Llama of so many layers, on no device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize("layers", [2, 7, 8])
def test_half_of_each_kind_trains(layers):
    model = deep(layers)
    for seed in range(5):
        chosen = Hft().draw(model, seed)
        for layer in range(layers):
            names = [name.removeprefix(f"model.layers.{layer}.") for name in chosen if f".layers.{layer}." in name]
            assert sum("self_attn" in name for name in names) == 2
            assert sum("mlp" in name for name in names) in (1, 2)
            assert sum("norm" in name for name in names) == 1 and len(names) in (4, 5)
        assert abs(sum("mlp" in name for name in chosen) - 3 * layers / 2) <= 1
        assert {name for name in chosen if ".layers." not in name} == {"model.embed_tokens", "model.norm", "lm_head"}
    assert not [name for name in Hft(head_and_embeddings=False).draw(model, 0) if ".layers." not in name]


def test_the_draw_depends_on_seed_and_round_alone_and_reaches_everything():
    model, other = deep(4), deep(4)
    draws = {(seed, number): frozenset(Hft(round=number).draw(model, seed)) for seed in (0, 1) for number in range(12)}
    assert len(set(draws.values())) == len(draws)
    torch.manual_seed(9)
    assert draws[0, 3] == Hft(round=3).draw(other, 0)
    everything = {name for name, each in model.named_modules() if list(each.parameters(recurse=False))}
    assert frozenset().union(*(draws[0, number] for number in range(12))) == everything


@pytest.fixture
def trained(llama, rows, settings, recorder):
    import peft  # noqa: F401  seconds, which are no test's own

    def go(adapter):
        model = llama()
        attached = adapter.attach(model, {}, 0)
        reporter = recorder(type(adapter).__name__)
        plan = IndexPlan(Shuffled().start(6, 3, 0), 3, 18)
        optimizer = AdamW(lr=0.01, weight_decay=0.1)
        train(attached, Sft(), optimizer, plan, rows([9, 14, 8, 20, 11, 6]), None, settings(), reporter, Alone())
        return model, attached, reporter

    return go


def test_what_is_frozen_keeps_its_bits_and_has_no_optimizer_state(trained, llama):
    from safetensors.torch import load_file

    model, attached, reporter = trained(Hft())
    start = dict(llama().named_parameters())
    for name, each in model.named_parameters():
        assert each.requires_grad == (name in attached.parameters)
        assert torch.equal(each, start[name]) == (name not in attached.parameters), name
    with reporter.latest() as folder:
        kept = load_file(folder / "state.safetensors")
    states = {name.partition("/")[2].partition("/")[2] for name in kept if name.startswith("optimizer/")}
    assert states == set(attached.parameters) < set(start)
    assert reporter.values("loss")[-1] < reporter.values("loss")[0]


def test_it_is_full_tuning_of_fewer_parameters(trained):
    half, full = trained(Hft(head_and_embeddings=False))[1], trained(Full())[1]
    sizes = [
        sum(each.numel() for name, each in attached.parameters.items() if ".layers." in name)
        for attached in (half, full)
    ]
    assert 0.4 < sizes[0] / sizes[1] < 0.6
    assert Hft.makes == "model" and Hft.identity_at_start


def test_the_export_is_a_model_that_says_what_trained(tiny_directory, tmp_path):
    from graftline.stages.lm.load import load_model

    source = tiny_directory / "model"
    made = Hft(round=2).attach(load_model(source, "float32"), {}, 0)
    with torch.no_grad():
        for each in made.parameters.values():
            each.mul_(1.01)
    about = made.export(tmp_path, made.parameters, source, "tiny")
    assert about == {"class": "Hft", "round": 2, "trained": sorted(made.parameters)}
    assert json.loads(json.dumps(about)) == about
    with torch.no_grad():
        opened = Hft().reopen(tmp_path / "model", source, "float32")
        assert torch.equal(opened(input_ids=IDS).logits, made.model(input_ids=IDS).logits)
