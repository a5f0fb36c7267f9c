import json

import pytest
import torch
from safetensors.torch import load_file

from graftline.stages.train import AdamW, AdamW8bit, Full, Hft, Sft, Shuffled
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


def test_by_default_a_round_has_one_draw(trained):
    _, attached, _ = trained(Hft())
    assert attached.trains(0, 1) is None and Hft().redraw == "stage"


@pytest.mark.parametrize(("redraw", "each"), [("epoch", 2), (3, 3)])
@pytest.mark.parametrize("optimizer", [AdamW, AdamW8bit], ids=lambda kind: kind.__name__)
def test_another_half_is_drawn_within_the_round(llama, rows, settings, recorder, redraw, each, optimizer):
    """What rests keeps its bits, whatever decays, and has no optimizer state; what comes back starts afresh."""
    adapter = Hft(redraw=redraw, head_and_embeddings=False)
    model, seen, kept = llama(), [], []
    attached = adapter.attach(model, {}, 0)

    class Watched(IndexPlan):
        def next(self, step):
            seen.append({name: tensor.detach().clone() for name, tensor in model.named_parameters()})
            return super().next(step)

        def published(self, step, attached):
            with reporter.latest() as folder:
                kept.append(set() if folder is None else {name for name in load_file(folder / "state.safetensors")})

    reporter = recorder(f"{redraw} {optimizer.__name__}")
    plan = Watched(Shuffled().start(6, 3, 0), 3, 18)
    plug = optimizer(lr=0.01, weight_decay=0.1)
    train(attached, Sft(), plug, plan, rows([9, 14, 8, 20, 11, 6]), None, settings(epoch=2), reporter, Alone())
    seen.append(dict(model.named_parameters()))
    draws = [attached.drawn(step // each) for step in range(6)]
    assert len(set(draws)) == 6 // each and draws[0] == {name for name in draws[0] if ".layers." in name}
    for step, drawn in enumerate(draws):
        moved = {name for name in seen[step] if not torch.equal(seen[step][name], seen[step + 1][name])}
        assert moved == drawn, step
    for step, drawn in enumerate(draws[:-1]):  # the checkpoint after a step lies there when the next one ends
        states = {name.partition("/")[2].partition("/")[2] for name in kept[step + 1] if name.startswith("optimizer/")}
        assert states == drawn, step
    steps = {load_step(reporter, name) for name in draws[-1] - draws[-1 - each]}
    assert steps == {each}, "fresh moments: those that rested have seen the steps since the draw alone"


def load_step(reporter, name):
    with reporter.latest() as folder:
        return int(load_file(folder / "state.safetensors")[f"optimizer/step/{name}"])


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_killed_between_draws_and_resumed_it_ends_with_the_same_bits(llama, rows, settings, recorder, killed):
    ends = []
    for name, kills in (("straight", (None,)), ("killed", (killed, None))):
        for kill in kills:
            model = llama()
            attached = Hft(redraw="epoch").attach(model, {}, 0)
            plan = IndexPlan(Shuffled().start(6, 3, 0), 3, 18)
            go = lambda: train(  # noqa: E731
                attached, Sft(), AdamW(lr=0.01), plan, rows([9, 14, 8, 20, 11, 6]), None,  # noqa: B023
                settings(epoch=2), recorder(name, kill), Alone(),  # noqa: B023
            )  # fmt: skip
            if kill is None:
                go()
            else:
                with pytest.raises(KeyboardInterrupt):
                    go()
        ends.append((model.state_dict(), attached.draws))
    (straight, draws), (resumed, again) = ends
    assert draws == again == 2 and all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_it_is_full_tuning_of_fewer_parameters(trained):
    half, full = trained(Hft(head_and_embeddings=False))[1], trained(Full())[1]
    sizes = [
        sum(each.numel() for name, each in attached.parameters.items() if ".layers." in name)
        for attached in (half, full)
    ]
    assert 0.4 < sizes[0] / sizes[1] < 0.6
    assert Hft.makes == "model" and Hft.identity_at_start


def test_the_export_says_every_draw(tiny_directory, tmp_path):
    from graftline.stages.lm.load import load_model

    source = tiny_directory / "model"
    made = Hft(redraw=5).attach(load_model(source, "float32"), {}, 0)
    assert set(made.trains(11, 100)) == made.drawn(2) != made.drawn(1)
    about = made.export(tmp_path, made.parameters, source, "tiny")
    assert about["redraw"] == 5 and about["trained"] == [sorted(made.drawn(number)) for number in range(3)]


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
