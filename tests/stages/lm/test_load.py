"""Loading: nothing is fetched, nothing pickled is read, and a digest is that of the tensors alone."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from graftline.stages.errors import AdapterMismatch, EngineFailed, ModelNotFound
from graftline.stages.lm import load
from graftline.stages.lm.load import load_model, load_tokenizer, model_digest, probe_dtype, refuse_other_base


@pytest.fixture
def copy(tiny_directory, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(tiny_directory, target)
    (target / load.DIGEST_FILE).unlink(missing_ok=True)
    return target


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_comes_in_its_dtype_ready_to_evaluate(tiny_directory, dtype):
    model = load_model(tiny_directory, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training


def test_packed_rows_do_not_see_each_other(tiny_directory):
    """With restarted positions and no mask a loaded model keeps packed rows apart: its cache is off."""
    model = load_model(tiny_directory, "float32")
    first, second = torch.arange(5, 15), torch.arange(40, 52)
    with torch.no_grad():
        alone = model(second[None]).logits[0]
        positions = torch.cat([torch.arange(10), torch.arange(12)])[None]
        packed = model(torch.cat([first, second])[None], position_ids=positions).logits[0, 10:]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_the_digest_is_of_the_tensors_alone(copy):
    known = model_digest(copy)
    assert json.loads((copy / load.DIGEST_FILE).read_text())["weights_digest"] == known
    (copy / load.DIGEST_FILE).unlink()
    # Other metadata, another order, two files: the same tensors.
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights, reverse=True)
    (copy / "model.safetensors").unlink()
    save_file({name: weights[name] for name in names[:5]}, copy / "model-1.safetensors", {"made": "otherwise"})
    save_file({name: weights[name] for name in names[5:]}, copy / "model-2.safetensors")
    assert model_digest(copy) == known


@pytest.mark.parametrize("change", ["a number", "a name", "a shape", "a dtype"])
def test_the_digest_sees(copy, change):
    known = model_digest(copy)
    (copy / load.DIGEST_FILE).unlink()
    weights = load_file(copy / "model.safetensors")
    name = "model.norm.weight"
    tensor = weights.pop(name)
    if change == "a number":
        tensor[3] += 1e-7
    elif change == "a name":
        name = "model.norms.weight"
    elif change == "a shape":
        tensor = tensor.view(8, 8)
    else:
        tensor = tensor.view(torch.int32)
    save_file({**weights, name: tensor}, copy / "model.safetensors")
    assert model_digest(copy) != known


def test_a_kept_digest_is_used_while_the_sizes_agree(copy):
    kept = {"weights_digest": "kept", "files": {"model.safetensors": (copy / "model.safetensors").stat().st_size}}
    (copy / load.DIGEST_FILE).write_text(json.dumps(kept))
    assert model_digest(copy) == "kept"
    kept["files"]["model.safetensors"] += 1
    (copy / load.DIGEST_FILE).write_text(json.dumps(kept))
    assert model_digest(copy) != "kept"


def test_broken_weights_are_refused(copy):
    whole = (copy / "model.safetensors").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"\xff" * 64):
        (copy / "model.safetensors").write_bytes(broken)
        with pytest.raises(EngineFailed, match=r"cut short|not a safetensors file"):
            model_digest(copy)
        with pytest.raises(EngineFailed, match="cannot load the model"):
            load_model(copy, "float32")


def test_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(EngineFailed, match="cannot load the model"):
        load_model(copy, "float32")
    with pytest.raises(ModelNotFound, match="no safetensors"):
        model_digest(copy)


def test_a_directory_without_a_model_is_refused(tmp_path):
    for function in (lambda: load_model(tmp_path, "float32"), lambda: load_tokenizer(tmp_path / "never")):
        with pytest.raises(ModelNotFound, match=r"no config\.json"):
            function()


def test_the_probe_answers_once_and_quickly():
    probe_dtype.cache_clear()
    started = time.perf_counter()
    assert probe_dtype() in ("float32", "bfloat16")
    assert time.perf_counter() - started < 2  # 0.1 s where nobody else computes
    assert probe_dtype.cache_info().misses == 1
    probe_dtype()
    assert probe_dtype.cache_info().misses == 1


def test_an_adapter_names_its_base(tmp_path):
    refuse_other_base(tmp_path, "a" * 64)  # it says nothing
    (tmp_path / load.CARD).write_text(json.dumps({"base": {"name": "tiny", "weights_digest": "b" * 64}}))
    refuse_other_base(tmp_path, "b" * 64)
    with pytest.raises(AdapterMismatch, match=r"made for tiny with the weights bbbb.*these are aaaa"):
        refuse_other_base(tmp_path, "a" * 64)
