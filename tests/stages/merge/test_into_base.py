"""A merged model is the model that was trained: folded into what training held, not into what it was made from."""

import json

import pytest
import torch
from peft import PeftModel

from graftline.stages import Endpoint, Llm, Stage, merge, read
from graftline.stages.errors import AdapterMismatch, HeldOutLeak, InvalidField, WrongKind
from graftline.stages.lm.dequantised import load_dequantised
from graftline.stages.lm.held import load_held
from graftline.stages.lm.load import load_model, load_tokenizer, model_digest

IDS = torch.arange(3, 43).view(2, 20)


def dequantised(weight: torch.Tensor, held: str) -> torch.Tensor:
    """A weight as it is multiplied with when it is held so, by bitsandbytes' own functions."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(weight.detach(), None, None, 64, held == "nf4", "nf4"))


class Tuned(Stage):
    makes = "adapter"
    model: Stage = Llm("tiny")


@pytest.fixture
def merged(base, opened, tmp_path):
    """Makes the stage's model: its folder and its metrics."""

    def make(adapter, out="out", prepared=None, **fields):
        stage = merge.IntoBase(model=Llm("tiny"), adapter=Tuned(), **fields)
        (tmp_path / out).mkdir()
        inputs = {"model": base, "adapter": adapter} | ({} if prepared is None else {"prepared": prepared})
        metrics = stage.make(opened({Llm("tiny"): base}), tmp_path / out, **inputs)
        return tmp_path / out / "model", metrics

    return make


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def as_trained(base, adapter, held):
    """The adapter unmerged on a base in bitsandbytes' own 4-bit layers."""
    import bitsandbytes as bnb

    model = load_model(base.directory("model"), "float32")
    if held != "none":
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                layer = bnb.nn.Linear4bit(
                    module.in_features, module.out_features, bias=False, compute_dtype=torch.float32,
                    quant_type="nf4", compress_statistics=held == "nf4",
                )  # fmt: skip
                layer.load_state_dict({"weight": module.weight.data})
                layer.support_avx512bf16_for_cpu = False
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, layer.to("cpu"))
    return PeftModel.from_pretrained(model, adapter.directory("adapter")).eval()


@torch.no_grad()
def test_exact_has_the_logits_of_what_stands_beside_a_principal_part(merged, adapter, base):
    """The base as PiSSA over NF4 holds it: each layer by its own formula, (dequantised rest + B₀A₀ + BA)x."""
    made = adapter(1, held="nf4+4")
    folder, _ = merged(made)
    model = PeftModel.from_pretrained(load_held(base.directory("model"), "float32", "nf4+4"), made.directory("adapter"))
    torch.testing.assert_close(logits(load_model(folder, "float32")), logits(model.eval()), atol=1e-4, rtol=1e-4)
    plain = PeftModel.from_pretrained(load_held(base.directory("model"), "float32", "nf4"), made.directory("adapter"))
    assert (logits(model) - logits(plain.eval())).abs().max() > 0.01


@pytest.mark.parametrize("held", ["none", "nf4", "nf4-single"])
def test_exact_has_the_unmerged_models_logits(merged, adapter, base, held):
    made = adapter(1, held=held)
    folder, metrics = merged(made)
    wanted = logits(as_trained(base, made, held))
    torch.testing.assert_close(logits(load_model(folder, "float32")), wanted, atol=1e-4, rtol=1e-4)
    assert metrics["logits_off_exact"] < 1e-4
    assert metrics["kl_exact"] < 1e-6
    original = 1e-4 if held == "none" else float("inf")
    assert (held == "none") == (metrics["logits_off_original"] <= original < 1)


def test_original_is_off_by_the_quantisation_error(merged, adapter, base):
    made = adapter(1, held="nf4")
    folder, metrics = merged(made, onto="original")
    on_float = PeftModel.from_pretrained(load_model(base.directory("model"), "float32"), made.directory("adapter"))
    torch.testing.assert_close(logits(load_model(folder, "float32")), logits(on_float.eval()), atol=1e-4, rtol=1e-4)
    assert metrics["logits_off_original"] > 0.05 > metrics["logits_off_exact"]
    assert metrics["kl_original"] > metrics["kl_exact"]


def test_an_adapter_that_is_zero_leaves_the_held_base_to_the_bit(merged, adapter, base):
    folder, metrics = merged(adapter(1, size=0.0, held="nf4"))
    found = load_model(folder, "float32").state_dict()
    pristine = load_model(base.directory("model"), "float32")
    for name, tensor in pristine.state_dict().items():
        module = name.removesuffix(".weight")
        linear = isinstance(pristine.get_submodule(module), torch.nn.Linear) and module != "lm_head"
        assert torch.equal(found[name], dequantised(tensor, "nf4") if linear else tensor), name
    assert metrics["delta_share"] == 0


def test_merging_into_four_bits_again_would_round_the_adapter_away(adapter, base):
    """Why there is no such option: NF4 of (dequantised base + a small ΔW) is nearly the dequantised base again."""
    weight = dequantised(load_model(base.directory("model"), "float32").model.layers[0].mlp.down_proj.weight, "nf4")
    delta = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    delta *= 0.02 * weight.norm() / delta.norm()
    kept = dequantised(weight + delta, "nf4-single") - dequantised(weight, "nf4-single")
    assert torch.nn.functional.cosine_similarity(kept.flatten(), delta.flatten(), dim=0) < 0.3


def test_bf16_rounds_off_a_share_of_a_small_delta_and_says_so(merged, adapter, base):
    small = adapter(1, size=0.01)
    folder, metrics = merged(small, dtype="bfloat16")
    assert load_model(folder, torch.bfloat16).dtype == torch.bfloat16
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    large = merged(adapter(1, size=0.1), "other")[1]
    assert metrics["lost_in_bf16"] > 5 * large["lost_in_bf16"] > 0
    assert large["delta_share"] > 50 * metrics["delta_share"] > 0


def test_what_is_no_plain_lora_is_merged_too(merged, adapter, base):
    made = adapter(1, use_dora=True)
    folder, _ = merged(made)
    unmerged = PeftModel.from_pretrained(load_model(base.directory("model"), "float32"), made.directory("adapter"))
    torch.testing.assert_close(logits(load_model(folder, "float32")), logits(unmerged.eval()), atol=1e-4, rtol=1e-4)


def test_it_is_a_whole_model_that_says_what_it_is(merged, adapter, base):
    made = adapter(1, held="nf4", trained_on=("r1",))
    folder, metrics = merged(made)
    assert load_tokenizer(folder).chat_template == load_tokenizer(base.directory("model")).chat_template
    assert metrics["weights_digest"] == model_digest(folder) != model_digest(base.directory("model"))
    card = json.loads((folder / "graftline.json").read_text())
    assert card["formula"] == "dequantise(quantise(W)) + s·B·A"
    assert card["parents"]["adapter"]["digest"] == made.digest
    assert card["parents"]["model"]["digest"] == base.digest
    assert (folder.parent / "trained_on.parquet").exists()
    layers = json.loads((folder.parent / "merge.json").read_text())["layers"]
    assert len(layers) == 6
    again, _ = merged(made, "again")
    assert model_digest(again) == model_digest(folder)


def prepared(committed, base, ids):
    """Held-out rows as tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from graftline.stages.lm.chat import render_supervised

    tokenizer, lines = load_tokenizer(base.directory("model")), []
    for id in ids:
        turns = [{"role": "user", "content": f"please {id}"}, {"role": "assistant", "content": "the invoice"}]
        tokens, trained = render_supervised(tokenizer, turns)
        lines.append({"id": id, "parents": [], "group": id, "input_ids": tokens, "trained": trained})
    types = [
        ("id", pa.string()), ("parents", pa.list_(pa.string())), ("group", pa.string()),
        ("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.bool_())),
    ]  # fmt: skip
    table = pa.Table.from_pylist(lines, schema=pa.schema(types))
    return committed("rows", lambda folder: pq.write_table(table, folder / "a.parquet"))


def test_both_losses_are_reported(merged, adapter, base, committed):
    rows = read.Jsonl(path="x.jsonl", prompt="{text}", answer="{queue}")
    made = adapter(1, held="nf4", trained_on=("other",))
    _, metrics = merged(made, prepared=prepared(committed, base, ["r1", "r2", "r3"]), held_out=rows)
    assert metrics["loss_exact"] == pytest.approx(metrics["loss_unmerged"], abs=1e-4)
    assert abs(metrics["loss_original"] - metrics["loss_unmerged"]) > 1e-3
    with pytest.raises(HeldOutLeak, match="r2 is a held-out row"):
        leaky = adapter(1, trained_on=("r2",))
        merged(leaky, "leaky", prepared(committed, base, ["r1", "r2"]), held_out=rows)


def test_other_bases_and_tokenizers_are_refused(merged, adapter, base, opened, committed, tmp_path):
    import shutil

    with pytest.raises(AdapterMismatch, match="made for tiny with the weights 0000"):
        merged(adapter(1, weights="0" * 64))
    with pytest.raises(AdapterMismatch, match="'int3' cannot be rebuilt"):
        merged(adapter(1, held="int3"), "held")

    def other(folder):
        shutil.copytree(base.directory("model"), folder, dirs_exist_ok=True)
        rules = json.loads((folder / "tokenizer.json").read_text())
        rules["added_tokens"][0]["content"] = "<|other|>"
        (folder / "tokenizer.json").write_text(json.dumps(rules))

    stage = merge.IntoBase(model=Llm("tiny", dtype="float32"), adapter=Tuned())
    context = opened({Llm("tiny"): base})
    with pytest.raises(AdapterMismatch, match="another tokenizer"):
        stage.make(context, tmp_path, model=committed("model", other), adapter=adapter(1))


@pytest.mark.parametrize(
    ("fields", "kind", "where"),
    [
        ({"adapter": Llm("tiny")}, WrongKind, r"IntoBase\.adapter"),
        ({"model": Tuned()}, WrongKind, r"IntoBase\.model"),
        ({"model": Endpoint("m", url="http://localhost:1")}, WrongKind, r"IntoBase\.model"),
        ({"model": Llm("smollm2-135m-instruct")}, AdapterMismatch, r"IntoBase\.adapter"),
        ({"onto": "nf4"}, InvalidField, r"IntoBase\.onto"),
        ({"max_length": 1}, InvalidField, r"IntoBase\.max_length"),
    ],
)
def test_what_is_refused_when_it_is_built(fields, kind, where):
    with pytest.raises(kind, match=where):
        merge.IntoBase(**{"model": Llm("tiny"), "adapter": Tuned()} | fields)


def test_the_held_out_rows_are_tokenised_as_train_does_it():
    rows = read.Jsonl(path="x.jsonl", prompt="{text}", answer="{queue}")
    from graftline.stages import train

    tuned = train.Train(model=Llm("tiny"), rows=read.Jsonl(path="y.jsonl", prompt="{a}", answer="{b}"), held_out=rows)
    stage = merge.IntoBase(model=Llm("tiny"), adapter=tuned, held_out=rows)
    assert stage.expand()["prepared"] == tuned.expand()["prepared_held_out"]
    assert merge.IntoBase(model=Llm("tiny"), adapter=tuned).expand() == {}


def test_a_base_dequantised_from_its_stored_numbers(base):
    found = load_dequantised(base.directory("model"), "nf4")
    weight = load_model(base.directory("model"), "float32").model.layers[0].self_attn.q_proj.weight
    assert torch.equal(found.model.layers[0].self_attn.q_proj.weight, dequantised(weight, "nf4"))
    assert 0.05 < ((dequantised(weight, "nf4") - weight).norm() / weight.norm()).item() < 0.15
