import json

import pytest
import torch

from graftline.stages.errors import InvalidField
from graftline.stages.train import Continue, Lora

IDS = torch.randint(3, 64, (1, 12), generator=torch.Generator().manual_seed(1))
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def attached(model, plug=None, seed=0, trained=False):
    made = (plug or Lora(rank=4)).attach(model, {}, seed)
    if trained:
        torch.manual_seed(5)
        for parameter in made.parameters.values():
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_at_the_start_the_logits_are_the_bases(llama):
    before = logits(llama())
    assert torch.allclose(logits(attached(llama()).model), before, atol=1e-6)


def test_only_factors_train_all_linear_but_the_head(llama):
    made = attached(llama())
    trainable = {name for name, each in made.model.named_parameters() if each.requires_grad}
    assert len(made.parameters) == len(trainable) == 2 * len(LINEAR) * 2
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in made.parameters} == set(LINEAR)
    assert list(made.parameters) == sorted(made.parameters)


def test_first_backward_reaches_b_and_not_a(llama):
    made = attached(llama())
    made.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for name, each in made.parameters.items():
        assert bool(each.grad.abs().max() > 0) == ("lora_B" in name), name


def test_nothing_below_the_lowest_trained_layer_goes_back(llama):
    """Its output has no graph: neither its activations are kept nor its gradients computed."""
    made = attached(llama(), Lora(rank=4, targets=["layers.1.mlp.down_proj"]))
    graphs = []
    for layer in made.model.model.layers:
        layer.register_forward_hook(lambda _, __, output: graphs.append(output.requires_grad))
    made.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert graphs == [False, True] and all(each.grad is not None for each in made.parameters.values())


@pytest.mark.parametrize("targets", ["all-linear", ("up_proj", "q_proj"), ("layers.1.mlp.down_proj",)])
def test_the_upper_layers_alone(llama, targets):
    """Nothing that trains lies below, and nothing there, embeddings included, has a graph."""
    made = attached(llama(), Lora(rank=4, targets=targets, upper=1))
    assert {name.split(".layers.")[1][0] for name in made.parameters} == {"1"} and Lora(upper=1).upper_layers == 1
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in made.parameters} == (
        set(LINEAR) if targets == "all-linear" else {each.rpartition(".")[2] for each in targets}
    )
    graphs = []
    for module in (made.model.model.embed_tokens, *made.model.model.layers):
        module.register_forward_hook(lambda _, __, output: graphs.append(output.requires_grad))
    made.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert graphs == [False, False, True] and all(each.grad is not None for each in made.parameters.values())
    assert list(attached(llama(), Lora(upper=2)).parameters) == list(attached(llama()).parameters)


def test_upper_layers_that_are_not_there_are_refused(llama):
    with pytest.raises(InvalidField, match=r"Lora.upper: the model has 2 numbered layers"):
        attached(llama(), Lora(upper=3))
    for target in ("layers.0.mlp.down_proj", "model.layers.0.mlp.down_proj"):  # PEFT would train the one in full
        with pytest.raises(InvalidField, match=r"Lora.targets: .* is no linear layer of the model that trains"):
            attached(llama(), Lora(targets=("q_proj", target), upper=1))
    assert Lora().upper_layers is None


def test_peft_reloads_the_upper_layers(llama, tmp_path):
    from peft import PeftModel

    from graftline.stages.lm.adapters import AdapterSet, factors_of

    made = attached(llama(), Lora(rank=4, upper=1), trained=True)
    made.export(tmp_path, made.parameters, tmp_path / "unused", "some-model")
    folder = tmp_path / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["layers_to_transform"] == [1]
    assert {path.split(".layers.")[1][0] for path in factors_of(folder)} == {"1"}
    expected = logits(made.model.eval())
    peft = PeftModel.from_pretrained(llama(), str(folder)).eval()
    assert torch.equal(logits(peft), expected) and not torch.allclose(expected, logits(llama()), atol=1e-2)
    llama().save_pretrained(tmp_path / "base")
    assert torch.equal(logits(Lora().reopen(folder, tmp_path / "base", "float32").eval()), expected)
    serving = AdapterSet(llama(), "")
    serving.load("it", folder)
    serving.routing.use([serving.acquire("it")])
    assert torch.allclose(logits(serving.model), expected, atol=1e-5)
    model = llama()
    more = Continue().go_on(model, folder)
    assert list(more.parameters) == list(made.parameters) and torch.equal(logits(model.eval()), expected)


def deltas(made):
    factors = {}
    for name, each in made.parameters.items():
        layer, _, part = name.partition(".lora_")
        factors.setdefault(layer, {})[part[0]] = each.detach()
    return {layer: each["B"] @ each["A"] for layer, each in factors.items()}


def test_the_update_has_at_most_rank_r(llama):
    for delta in deltas(attached(llama(), Lora(rank=3), trained=True)).values():
        assert torch.linalg.matrix_rank(delta, rtol=1e-4) == 3


def test_merged_and_unmerged_agree(llama):
    made = attached(llama(), trained=True)
    apart = logits(made.model)
    assert not torch.allclose(apart, logits(llama()), atol=1e-2)
    assert torch.allclose(logits(made.wrapped.merge_and_unload()), apart, atol=1e-5)


def scale(model, plug):
    """The s of y = W₀x + s·BAx, read from outputs."""
    made = attached(model, plug, trained=True)
    layer = made.model.model.layers[0].self_attn.q_proj
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        moved = layer(x) - layer.base_layer(x)
        update = x @ (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).T
    return float((moved / update).median())


def test_scaling(llama):
    assert scale(llama(), Lora(rank=4)) == pytest.approx(2, rel=1e-3)
    assert scale(llama(), Lora(rank=8)) == pytest.approx(2, rel=1e-3)
    fixed = [scale(llama(), Lora(rank=rank, alpha=6.0)) for rank in (4, 8)]
    assert fixed == pytest.approx([6 / 4, 6 / 8], rel=1e-3)
    stabilised = [scale(llama(), Lora(rank=rank, alpha=6.0, rank_stabilised=True)) for rank in (4, 8)]
    assert stabilised[0] / stabilised[1] == pytest.approx(2**0.5, rel=1e-3)


def test_the_start_depends_on_the_seed_alone(llama):
    torch.manual_seed(1)
    first = attached(llama(), seed=3).parameters
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = attached(llama(), seed=3).parameters, attached(llama(), seed=4).parameters
    torch.manual_seed(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_factors_keep_the_bases_format(llama):
    made = attached(llama().to(torch.bfloat16))
    assert {each.dtype for each in made.parameters.values()} == {torch.bfloat16}


def test_named_targets(llama):
    made = attached(llama(), Lora(targets=("q_proj", "down_proj")))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in made.parameters} == {"q_proj", "down_proj"}
    with pytest.raises(InvalidField, match=r"Lora.targets: 'query' is no linear layer.*q_proj"):
        attached(llama(), Lora(targets=("q_proj", "query")))


def test_switched_off_is_the_base(llama):
    made = attached(llama(), trained=True)
    assert Lora.off_is_base
    with made.wrapped.disable_adapter():
        assert torch.allclose(logits(made.model), logits(llama()), atol=1e-6)


def test_dropout_works_in_training_only(llama):
    made = attached(llama(), Lora(dropout=0.5), trained=True)
    assert torch.equal(logits(made.model.eval()), logits(made.model))
    made.model.train()
    assert not torch.equal(logits(made.model), logits(made.model))


def test_the_export_is_a_plain_peft_directory_without_paths(llama, tmp_path):
    from peft import PeftModel

    made = attached(llama(), Lora(rank=4, dropout=0.1), trained=True)
    made.model.eval()
    about = made.export(tmp_path, made.parameters, tmp_path / "unused", "some-model")
    folder = tmp_path / "adapter"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some-model" and config["target_modules"] == sorted(LINEAR)
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text()
    assert about == {"class": "Lora", "rank": 4, "alpha": 8}
    peft = PeftModel.from_pretrained(llama(), str(folder)).eval()
    assert torch.equal(logits(peft), logits(made.model))
    llama().save_pretrained(tmp_path / "base")
    reopened = Lora(rank=4).reopen(folder, tmp_path / "base", "float32").eval()
    assert torch.equal(logits(reopened), logits(made.model))


def test_the_export_keeps_the_fp32_masters(llama, tmp_path):
    from safetensors.torch import load_file

    made = attached(llama().to(torch.bfloat16), trained=True)
    masters = {name: each.detach().float() + 1e-6 for name, each in made.parameters.items()}
    made.export(tmp_path, masters, tmp_path / "unused", "m")
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.replace(".default", "") for name in masters} == set(written)
    assert all(torch.equal(written[name.replace(".default", "")], each) for name, each in masters.items())


@pytest.mark.parametrize("fields", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}, {"targets": "all"}])
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(InvalidField, match=f"Lora.{next(iter(fields))}"):
        Lora(**fields)
