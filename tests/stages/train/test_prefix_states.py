import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from graftline.stages import Llm, Source, train
from graftline.stages.errors import InvalidField
from graftline.stages.expected import Given, Usage
from graftline.stages.lm.load import load_model
from graftline.stages.rows import FIXED
from graftline.stages.train import Float, Nf4, PrefixStates, Tokenised
from graftline.stages.train.build import build
from graftline.stages.train.prefix_states import entering, pack_states
from graftline.stages.train.reference_logprobs import BaseAlone


class Rows(Source):
    """Rows that a test has."""

    def columns_made(self):
        return FIXED


ROWS = Tokenised(rows=Rows(), model=Llm("tiny"), max_length=64)


def stage(**fields):
    return PrefixStates(**{"rows": ROWS, "model": ROWS.model, "upper": 1, "dtype": "float32", **fields})


@pytest.fixture
def table(context, messages, tiny_directory, opened):
    import peft  # noqa: F401  seconds, which are no test's own

    context.artefacts[ROWS.model] = opened(tiny_directory)
    return ROWS.map_rows(messages(6), context)


@pytest.mark.parametrize("base", [Float(), Nf4()])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_are_what_enters_the_first_layer_that_trains(context, table, tiny_directory, base, dtype):
    found = stage(base=base, dtype=dtype).score_rows(table, context)
    model = build(tiny_directory / "model", dtype, base, BaseAlone(), 0, "cpu").model.eval()
    for row, states in zip(table.to_pylist(), found["prefix_states"], strict=True):
        with torch.no_grad():
            given = torch.tensor([row["input_ids"]])
            every = model(input_ids=given, use_cache=False, output_hidden_states=True).hidden_states
        made = torch.frombuffer(bytearray(states), dtype=getattr(torch, dtype)).view(-1, 64)
        close = 1e-5 if dtype == "float32" else 0.05
        torch.testing.assert_close(made, every[1][0], atol=close, rtol=close)
    assert set(found["prefix_layers"]) == {1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rows_states_do_not_depend_on_the_others(context, table, dtype):
    whole = stage(dtype=dtype).score_rows(table, context)["prefix_states"]
    for start, count in ((0, 2), (2, 1), (3, 3)):
        part = stage(dtype=dtype).score_rows(table.slice(start, count), context)["prefix_states"]
        assert part == whole[start : start + count], "to the bit"


def test_a_long_row_that_is_lengthened_has_its_own_states(context, table, tiny_directory):
    """In bf16 products are of few sizes; what is put after a row is not seen."""
    ids = [5 + place % 200 for place in range(141)]
    row = table.slice(0, 1).set_column(table.column_names.index("input_ids"), "input_ids", [[ids]])
    (states,) = stage(dtype="bfloat16").score_rows(row, context)["prefix_states"]
    exact = load_model(tiny_directory / "model", "float32")
    with torch.no_grad():
        right = exact(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True).hidden_states[1][0]
    made = torch.frombuffer(bytearray(states), dtype=torch.bfloat16).view(-1, 64).float()
    assert made.shape == right.shape and (made - right).norm() < 0.02 * right.norm()


def test_packed_states_are_handed_on_in_the_models_format(llama):
    rows = [
        {
            "input_ids": np.arange(length),
            "prefix_states": torch.full((length, 32), length, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes(),
            "prefix_layers": 1,
        }
        for length in (2, 3)
    ]
    packed = pack_states(rows)
    assert packed["prefix_states"].shape == (5, 64) and packed["prefix_states"].dtype == torch.uint8
    found = entering(llama(), packed)
    assert found["below"] == 1 and found["states"].dtype == torch.float32
    assert found["states"][:, 7].tolist() == [2, 2, 3, 3, 3]


def test_trials_share_it_and_a_plan_counts_no_request():
    def hidden(**fields):
        adapter = train.Lora(**{"upper": 1, **fields.pop("lora", {})})
        given = {"model": Llm("tiny"), "rows": Rows(), "objective": train.Sft(cached_prefix=True), "adapter": adapter}
        return train.Train(**given, **fields).expand()["prepared"]

    one = hidden()
    assert isinstance(one, PrefixStates) and one.rows == Tokenised(rows=Rows(), model=Llm("tiny"), max_length=1024)
    assert one == hidden(lora={"rank": 32, "alpha": 3.0}, seed=5, optimizer=train.AdamW(lr=0.1), epochs=7.0)
    others = [hidden(lora={"upper": 2}), hidden(base=Nf4()), hidden(dtype="float32"), hidden(max_length=9)]
    assert len({one, *others}) == 5
    assert stage().expected(Given()).usage == Usage() and not stage().calls_model


def test_too_few_layers_are_refused(context, table):
    with pytest.raises(InvalidField, match=r"upper: the model has 2 layers"):
        stage(upper=3).score_rows(table, context)


def test_smollm2_is_of_a_kind_that_can_be_cut():
    from graftline.stages.lm import smollm2
    from graftline.stages.lm.upper_layers import refuse_whole

    refuse_whole(load_model(smollm2.directory()[0], "bfloat16"))


# --- whole runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(context, tmp_path, tiny_directory, opened, messages):
    """Makes a `Train`, with or without a cached prefix; answers with its metrics."""
    import peft  # noqa: F401  seconds, which are no test's own

    def go(made, name, within=None):
        within = within or type(context)(tmp_path / f"{name}-scratch")
        within.scratch.mkdir(exist_ok=True)
        given = {"model": opened(tiny_directory)}
        within.artefacts[made.model] = given["model"]
        for field, hidden in made.expand().items():
            cached = isinstance(hidden, PrefixStates)
            rows = messages(12) if field == "prepared" else messages(4, start=50)
            rows = (hidden.rows if cached else hidden).map_rows(rows, within).drop_columns(["filtered"])
            for column, values in hidden.score_rows(rows, within).items() if cached else ():
                kind = pa.large_binary() if column == "prefix_states" else pa.int32()
                rows = rows.append_column(column, pa.array(values, kind))
            given[field] = opened(tmp_path / name / field, "rows", rows)
        out = tmp_path / name / "attempt"
        out.mkdir()
        return made.make(within, out, **given), within

    return go


class Other(Rows):
    """Held-out rows."""


QUICK = {"epochs": 3.0, "batch_size": 4, "dtype": "float32", "bin_tokens": 128, "eval_every": 1}


def tuned(cached=True, **fields):
    given = {"model": Llm("tiny"), "rows": Rows(), "held_out": Other(), **QUICK, "optimizer": train.AdamW(lr=0.01)}
    objective = train.Sft(cached_prefix=cached)
    return train.Train(**{**given, "objective": objective, "adapter": train.Lora(rank=4, upper=1), **fields})


@pytest.mark.parametrize("base", [Float(), Nf4()], ids=["float", "nf4"])
def test_a_run_with_it_ends_as_one_without(run, base):
    """Every loss; and what is served is measured without it, on the float base, too."""
    (plain, seen), (cached, saw) = (run(tuned(each, base=base), f"run-{each}") for each in (False, True))
    for name in ("loss", "eval_loss"):
        assert saw.values(name) == pytest.approx(seen.values(name), rel=1e-5) and len(saw.values(name)) >= 9
    assert cached["eval_loss"] < cached["eval_loss_before"] - 0.1
    assert cached["loss_as_served"] == pytest.approx(cached["loss_as_trained"], abs=1e-5)
    for name in {"tokens", "steps", "loss_as_trained", "loss_as_served", "loss_on_float_base"} & set(plain):
        assert cached[name] == pytest.approx(plain[name], rel=1e-5), name
    assert ("loss_on_float_base" in plain) == (base == Nf4())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_killed_and_run_again_it_ends_with_the_same_bits(run, context, dtype):
    made = tuned(checkpoint_every=2, adapter=train.Lora(rank=2, upper=1, dropout=0.1), dtype=dtype)
    straight, _ = run(made, "straight")

    def kill(done, total, **numbers):
        if done == 5:
            raise KeyboardInterrupt

    context.progress = kill
    with pytest.raises(KeyboardInterrupt):
        run(made, "killed", within=context)
    del context.progress
    resumed, _ = run(made, "again", within=context)
    assert resumed["adapter_digest"] == straight["adapter_digest"] and resumed["steps"] == 9


def test_a_pipeline_makes_it_once_for_two_trainings(tmp_path):
    from graftline.pipelines import run
    from graftline.stages import read

    lines = [{"prompt": f"the water is cold {place}", "completion": ("a", "b")[place % 2]} for place in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = tuned(rows=read.Jsonl(path="rows.jsonl"), held_out=None, epochs=1.0)
    second = first.replace("adapter.rank", 2).replace("seed", 3)
    made = run({"a": first, "b": second}, str(tmp_path / "store"), base=tmp_path, name="p", address="here")
    losses = [made[name].metrics["loss_as_served"] - made[name].metrics["loss_as_trained"] for name in ("a", "b")]
    assert losses == pytest.approx([0, 0], abs=1e-5)
    stored = [path.name for path in (tmp_path / "store").glob("*/*PrefixStates*")]
    assert len(stored) == 1, stored


def test_a_model_that_cannot_be_cut_is_refused_before_it_trains(context, table, tiny_directory, opened, tmp_path):
    """Its scorer says so at once: it is no row's fault."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=300)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2" / "model")
    context.artefacts[ROWS.model] = opened(tmp_path / "gpt2")
    with pytest.raises(InvalidField, match=r"cached_prefix: the upper layers of this gpt2.*Leave it out"):
        stage().score_rows(table, context)
