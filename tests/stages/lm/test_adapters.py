"""Adapters do what PEFT does with them, belong to their base, and go when nobody uses them any more."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from graftline.stages.errors import AdapterMismatch, FileMissing
from graftline.stages.lm.adapters import AdapterSet, GroupedLora
from graftline.stages.lm.load import load_model, model_digest

IDS = torch.arange(3, 43).view(2, 20)


@pytest.fixture
def adapters(tiny_directory):
    return AdapterSet(load_model(tiny_directory, "float32"), model_digest(tiny_directory))


@torch.no_grad()
def logits(adapters: AdapterSet, *names: str | None) -> torch.Tensor:
    """Of the rows of IDS, each with its own adapter."""
    adapters.routing.use([adapters.acquire(name) for name in names])
    found = adapters.model(IDS[: len(names)]).logits
    adapters.routing.use(())
    return found


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1]},
    ],
    ids=["plain", "rslora", "patterns", "all linear", "one layer"],
)
def test_equals_peft(adapters, make_adapter, tiny_directory, config):
    directory = make_adapter(3, 4, **config)
    adapters.load("it", directory)
    with torch.no_grad():
        peft = PeftModel.from_pretrained(load_model(tiny_directory, "float32"), directory).eval()(IDS).logits
    found = logits(adapters, "it", "it")
    torch.testing.assert_close(found, peft, atol=1e-4, rtol=1e-4)
    assert (found - logits(adapters, None, None)).abs().max() > 0.05


def test_rows_of_one_batch_use_their_own(adapters, two_adapters):
    for name, directory in two_adapters.items():
        adapters.load(name, directory)
    mixed = logits(adapters, "two", None)
    torch.testing.assert_close(mixed[0], logits(adapters, "two", "two")[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixed[1], logits(adapters, None, None)[1], atol=1e-4, rtol=1e-4)


def test_an_adapter_that_comes_between_passes_is_used(adapters, two_adapters, make_adapter):
    """Adapters of one pass are multiplied as one, which is kept for the next pass."""
    for name, directory in two_adapters.items():
        adapters.load(name, directory)
    logits(adapters, "one", "two")
    adapters.load("three", make_adapter(7, 4))
    mixed = logits(adapters, "three", "two")
    torch.testing.assert_close(mixed[0], logits(adapters, "three")[0], atol=1e-4, rtol=1e-4)
    adapters.unload("one")
    torch.testing.assert_close(logits(adapters, "three", "two"), mixed, atol=1e-4, rtol=1e-4)


def test_the_base_is_untouched_to_the_bit(adapters, two_adapters):
    before = logits(adapters, None, None)
    adapters.load("one", two_adapters["one"])
    assert torch.equal(logits(adapters, None, None), before)


def test_another_thread_gets_the_base(adapters, two_adapters):
    """Which adapter a token uses is said in the thread that computes it."""
    from concurrent.futures import ThreadPoolExecutor

    adapters.load("one", two_adapters["one"])
    base = logits(adapters, None, None)
    adapters.routing.use([adapters.acquire("one")] * 2)
    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        assert torch.equal(pool.submit(lambda: torch.no_grad()(lambda: adapters.model(IDS).logits)()).result(), base)
    adapters.routing.use(())


def held(adapters: AdapterSet) -> int:
    """Layers that hold factors."""
    return sum(bool(layer.factors) for layer in adapters.model.modules() if isinstance(layer, GroupedLora))


def test_an_unloaded_adapter_goes_with_its_last_user(adapters, two_adapters):
    adapters.load("one", two_adapters["one"])
    slots = [adapters.acquire("one"), adapters.acquire("one")]
    adapters.unload("one")
    with pytest.raises(AdapterMismatch, match="no adapter 'one' is loaded"):
        adapters.acquire("one")
    adapters.release(slots[0])
    assert held(adapters) == 6
    adapters.release(slots[1])
    assert held(adapters) == 0
    adapters.unload("never there")


def test_a_name_loaded_again_is_the_new_one(adapters, two_adapters):
    adapters.load("it", two_adapters["one"])
    first, slot = logits(adapters, "it"), adapters.acquire("it")
    adapters.load("it", two_adapters["two"])
    assert not torch.allclose(logits(adapters, "it"), first, atol=1e-3)
    adapters.release(slot)


def test_another_base_is_refused(adapters, make_adapter):
    with pytest.raises(AdapterMismatch, match="made for tiny with the weights 0000"):
        adapters.load("it", make_adapter(1, 4, base="0" * 64))


def test_an_adapter_that_records_no_base_is_checked_by_shape(adapters, make_adapter):
    directory = make_adapter(1, 4)
    (directory / "graftline.json").unlink()
    adapters.load("it", directory)
    weights = load_file(directory / "adapter_model.safetensors")
    save_file(
        {name: tensor[..., :-1].contiguous() for name, tensor in weights.items()},
        directory / "adapter_model.safetensors",
    )
    with pytest.raises(AdapterMismatch, match=r"down_proj is \(64, 128\) here, its factors are"):
        adapters.load("it", directory)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda path, tensor: {f"{path.replace('q_proj', 'z_proj')}": tensor}, "no linear layer"),
        (lambda path, tensor: {path: tensor * float("nan")}, "not finite"),
        (lambda path, tensor: {"base_model.model.lm_head.weight": tensor}, "no LoRA factor"),
        (lambda path, tensor: {"base_model.model.lm_head.lora_A.weight": tensor}, "the output head"),
    ],
)
def test_factors_that_fit_nowhere_are_refused(adapters, make_adapter, change, complaint):
    directory = make_adapter(1, 4, target_modules=["q_proj"])
    file = directory / "adapter_model.safetensors"
    changed: dict[str, torch.Tensor] = {}
    for path, tensor in load_file(file).items():
        changed |= change(path, tensor)
    save_file(changed, file)
    with pytest.raises(AdapterMismatch, match=complaint):
        adapters.load("it", directory)
    assert held(adapters) == 0


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": True},
        {"layer_replication": [[0, 2]]},  # which PEFT itself merges into another model
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_is_not_base_plus_ba_is_refused(adapters, make_adapter, setting):
    directory = make_adapter(1, 4)
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(AdapterMismatch, match=f"uses {next(iter(setting))}"):
        adapters.load("it", directory)


def test_no_adapter_directory_is_refused(adapters, tmp_path):
    with pytest.raises(FileMissing, match=r"no adapter_config\.json"):
        adapters.load("it", tmp_path)


def test_a_pass_of_other_tokens_than_were_said_is_an_error(adapters, two_adapters):
    adapters.load("one", two_adapters["one"])
    adapters.routing.use([adapters.acquire("one")] * 7)
    with pytest.raises(RuntimeError, match="40 tokens pass a layer, but adapters were said for 7"):
        adapters.model(IDS)
    adapters.routing.use(())
