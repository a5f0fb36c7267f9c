"""Adapters laid side by side are their exact weighted sum, which PEFT's `linear` is not."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from graftline.stages import Endpoint, Llm, Stage, merge
from graftline.stages.errors import AdapterMismatch, InvalidField, WrongKind
from graftline.stages.lm.adapters import AdapterSet, factors_of
from graftline.stages.lm.load import load_model, model_digest

IDS = torch.arange(3, 43).view(2, 20)


class Tuned(Stage):
    makes = "adapter"
    model: Stage = Llm("tiny")
    seed: int = 0


@pytest.fixture
def concatenated(base, opened, tmp_path):
    """Makes and opens the stage's adapter folder; its metrics too."""

    def make(adapters, weights=None, out="out"):
        stage = merge.Concat(
            model=Llm("tiny"), adapters={name: Tuned(seed=place) for place, name in enumerate(adapters)},
            weights=weights,
        )  # fmt: skip
        (tmp_path / out).mkdir()
        metrics = stage.make(opened({Llm("tiny"): base}), tmp_path / out, model=base, adapters=adapters)
        return tmp_path / out / "adapter", metrics

    return make


def deltas(folder):
    return {path: each.scale * each.b.double() @ each.a.double() for path, each in factors_of(folder).items()}


def added(parts):
    total = {}
    for weight, delta in parts:
        for path, each in delta.items():
            total[path] = total.get(path, 0) + weight * each
    return total


def far(found, wanted):
    """The relative error over all layers."""
    assert found.keys() == wanted.keys()
    off = sum((found[path] - wanted[path]).norm() ** 2 for path in wanted)
    return float((off / sum(each.norm() ** 2 for each in wanted.values())) ** 0.5)


def directories(*made):
    return [each.directory("adapter") for each in made]


def test_it_is_the_weighted_sum_whatever_ranks_and_scales(concatenated, adapter):
    made = {
        "a": adapter(1, 4),
        "b": adapter(2, 8, use_rslora=True, target_modules=["o_proj", "q_proj"]),
        "c": adapter(3, 2, rank_pattern={"q_proj": 3}, alpha_pattern={"v_proj": 5}),
    }
    weights = {"a": 0.5, "b": -1.25, "c": 2.0}
    folder, metrics = concatenated(made, weights)
    parts = [(weights[name], deltas(each.directory("adapter"))) for name, each in made.items()]
    assert far(deltas(folder), added(parts)) < 1e-6
    ranks = {path: each.a.shape[0] for path, each in factors_of(folder).items()}
    assert {rank for path, rank in ranks.items() if path.endswith("q_proj")} == {4 + 8 + 3}
    assert {rank for path, rank in ranks.items() if path.endswith("o_proj")} == {8}
    assert metrics["rank"] == 15
    assert len(load_file(folder / "adapter_model.safetensors")) == 2 * metrics["layers"] == 2 * len(ranks)


def test_peft_and_our_engine_read_it_as_the_sum(concatenated, adapter, base):
    made = {"a": adapter(1, 4), "b": adapter(2, 8, target_modules=["o_proj", "q_proj"])}
    folder, _ = concatenated(made, {})  # each weighs 1
    directory = base.directory("model")
    model = load_model(directory, "float32")
    for path, delta in added([(1.0, deltas(each)) for each in directories(*made.values())]).items():
        model.get_submodule(path).weight.data += delta.float()
    with torch.no_grad():
        wanted = model(IDS).logits
        peft = PeftModel.from_pretrained(load_model(directory, "float32"), folder).eval()(IDS).logits
        ours = AdapterSet(load_model(directory, "float32"), model_digest(directory))
        ours.load("sum", folder)
        ours.routing.use([ours.acquire("sum")] * 2)
        grouped = ours.model(IDS).logits
        ours.routing.use(())
    torch.testing.assert_close(peft, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grouped, wanted, atol=1e-4, rtol=1e-4)


def test_pefts_linear_is_no_weighted_sum(concatenated, adapter, base, tmp_path):
    made = {"a": adapter(1, 4), "b": adapter(2, 4)}
    wanted = added([(0.5, deltas(each)) for each in directories(*made.values())])
    folder, _ = concatenated(made, {"a": 0.5, "b": 0.5})
    assert far(deltas(folder), wanted) < 1e-6

    first, second = directories(*made.values())
    peft = PeftModel.from_pretrained(load_model(base.directory("model"), "float32"), first, adapter_name="a")
    peft.load_adapter(second, adapter_name="b")
    for kind, least, most in (("linear", 0.5, 9.0), ("cat", 0.0, 1e-5)):
        peft.add_weighted_adapter(["a", "b"], [0.5, 0.5], combination_type=kind, adapter_name=kind)
        peft.save_pretrained(tmp_path / kind, selected_adapters=[kind])
        assert least <= far(deltas(tmp_path / kind / kind), wanted) <= most, kind


@pytest.mark.parametrize("ranks", [(4, 4), (4, 8)])
def test_padding_with_zeros_and_averaging_factors_is_no_weighted_sum(concatenated, adapter, ranks):
    made = {"a": adapter(1, ranks[0]), "b": adapter(2, ranks[1])}
    first, second = directories(*made.values())
    wanted = added([(0.5, deltas(first)), (0.5, deltas(second))])
    folder, _ = concatenated(made, {"a": 0.5, "b": 0.5})
    assert far(deltas(folder), wanted) < 1e-6

    def mean(one, two, dimension):
        shape = list(one.shape)
        shape[dimension] = max(one.shape[dimension], two.shape[dimension])
        total = torch.zeros(shape, dtype=torch.float64)
        for each in (one, two):
            total.narrow(dimension, 0, each.shape[dimension]).add_(each, alpha=0.5)
        return total

    one, two = factors_of(first), factors_of(second)
    assert one.keys() == two.keys() == wanted.keys()
    assert {one[path].scale for path in one} == {two[path].scale for path in two} == {2.0}
    averaged = {path: 2.0 * mean(one[path].b, two[path].b, 1) @ mean(one[path].a, two[path].a, 0) for path in one}
    assert {each.shape[0] for each in (mean(one[path].a, two[path].a, 0) for path in one)} == {max(ranks)}
    assert far(averaged, wanted) > 0.5


def test_order_and_names_change_nothing(concatenated, adapter):
    one, two, three = adapter(1, 4), adapter(2, 8), adapter(3, 2)
    forwards = {"a": one, "b": two, "c": three}
    backwards = {"x": three, "y": one, "z": two}
    weights = ({"a": 1.0, "b": 2.0, "c": 3.0}, {"y": 1.0, "z": 2.0, "x": 3.0})
    folder, metrics = concatenated(forwards, weights[0])
    other, again = concatenated(backwards, weights[1], "other")
    assert again["adapter_digest"] == metrics["adapter_digest"]
    assert far(deltas(other), deltas(folder)) == 0


def test_weights_are_shares_of_the_rows_trained_on(concatenated, adapter):
    made = {"a": adapter(1, 4, rows=30), "b": adapter(2, 4, rows=10)}
    folder, metrics = concatenated(made)
    wanted = added(zip((0.75, 0.25), map(deltas, directories(*made.values())), strict=True))
    assert far(deltas(folder), wanted) < 1e-6
    assert metrics["rows"] == 40
    with pytest.raises(InvalidField, match="b does not say how many rows"):
        concatenated({"a": made["a"], "b": adapter(5, 4, rows=None)}, out="other")


def test_parents_and_formula_are_recorded(concatenated, adapter):
    made = {"a": adapter(1, 4, trained_on=("r1", "r2")), "b": adapter(2, 4, trained_on=("r2", "r3"))}
    folder, metrics = concatenated(made, {"a": 1.0, "b": 0.5})
    card = json.loads((folder / "graftline.json").read_text())
    own = json.loads((made["a"].directory("adapter") / "graftline.json").read_text())
    assert card["base"] == own["base"]
    assert {name: (each["digest"], each["weight"]) for name, each in card["parents"].items()} == {
        "a": (made["a"].digest, 1.0), "b": (made["b"].digest, 0.5),
    }  # fmt: skip
    assert card["adapter_digest"] == metrics["adapter_digest"]
    import pyarrow.parquet as pq

    assert pq.read_table(folder.parent / "trained_on.parquet")["id"].to_pylist() == ["r1", "r2", "r3"]


def test_mixed_bases_are_refused(concatenated, adapter):
    with pytest.raises(AdapterMismatch, match=r"Concat\.adapters\.b: was made for tiny with the weights 0000"):
        concatenated({"a": adapter(1), "b": adapter(2, weights="0" * 64)})
    with pytest.raises(AdapterMismatch, match="held differently"):
        concatenated({"a": adapter(1), "b": adapter(2, held="nf4")}, out="other")


def test_mixed_tokenizers_are_refused(concatenated, adapter, base, opened, committed, tmp_path):
    import shutil

    def other(folder):
        shutil.copytree(base.directory("model"), folder, dirs_exist_ok=True)
        template = folder / "chat_template.jinja"
        template.write_text(template.read_text() + " ")

    stage = merge.Concat(model=Llm("tiny"), adapters={"a": Tuned(model=Llm("tiny", dtype="float32"))})
    context = opened({Llm("tiny"): base, Llm("tiny", dtype="float32"): committed("model", other)})
    with pytest.raises(AdapterMismatch, match=r"adapters\.a: was trained with another tokenizer or chat template"):
        stage.make(context, tmp_path, model=base, adapters={"a": adapter(1)})


def test_what_is_no_plain_lora_is_refused(concatenated, adapter):
    with pytest.raises(AdapterMismatch, match="use_dora"):
        concatenated({"a": adapter(1, use_dora=True)}, {"a": 1.0})


@pytest.mark.parametrize(
    ("fields", "kind", "where"),
    [
        ({"adapters": {}}, InvalidField, r"Concat\.adapters"),
        ({"weights": {"b": 1.0}}, InvalidField, r"Concat\.weights"),
        ({"weights": {"a": float("nan")}}, InvalidField, r"Concat\.weights"),
        ({"model": Tuned()}, WrongKind, r"Concat\.model"),
        ({"model": Endpoint("m", url="http://localhost:1")}, WrongKind, r"Concat\.model"),
        ({"model": Llm("smollm2-135m-instruct")}, AdapterMismatch, r"Concat\.adapters\.a"),
        ({"adapters": {"a": Llm("tiny")}}, WrongKind, r"Concat\.adapters\.a"),
    ],
)
def test_what_is_refused_when_it_is_built(fields, kind, where):
    with pytest.raises(kind, match=where):
        merge.Concat(**{"model": Llm("tiny"), "adapters": {"a": Tuned()}} | fields)
