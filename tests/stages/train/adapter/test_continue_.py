"""Going on with an adapter: two halves are one training, DPO after SFT starts from the SFT adapter."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from graftline.stages import Llm, Previous, Repeat, Source, train
from graftline.stages.errors import AdapterMismatch, HeldOutLeak, InvalidField, WrongKind
from graftline.stages.rows import PREFERENCE
from graftline.stages.train import AdamW, Continue, Dpo, Float, Full, Hft, Lora, Nf4, Pissa, plugs
from graftline.stages.train.build import build
from graftline.stages.train.export import adapter_digest
from graftline.stages.train.pairs import answer_logprobs, pack_pairs

IDS = torch.randint(3, 64, (1, 12), generator=torch.Generator().manual_seed(1))


class Given(Source):
    """Rows that a test has."""

    number: int = 0


class Pairs(Source):
    """Preference rows that a test has."""

    number: int = 0

    def columns_made(self):
        return PREFERENCE


class Descent(plugs.Optimizer):
    """Plain gradient descent, which keeps nothing from step to step."""

    method = "optimizer.descent"
    lr: float

    def bind(self, masters, steps):
        return Descending(masters, self.lr)


class Descending(plugs.Bound):
    """Moves by the gradient; a rate of 0 stands still."""

    def __init__(self, masters, lr):
        self.masters, self.lr = masters, lr

    def step(self, step, loss):
        with torch.no_grad():
            for each in self.masters.values():
                each.sub_(each.grad, alpha=self.lr)
        return {}

    def state(self):
        return {}

    def load(self, state):
        assert not state


class InOrder(train.Shuffled):
    """Rows as they come, from a place on."""

    method = "sampler.in_order"
    skip: int = 0

    def start(self, n, batch_size, seed, total):
        return Ordered(n, batch_size, self.skip)


class Ordered(plugs.Drawn):
    def __init__(self, n, batch_size, skip):
        self.n, self.batch_size, self.skip = n, batch_size, skip

    def next_batch(self, step):
        places = [(self.skip + step * self.batch_size + index) % self.n for index in range(self.batch_size)]
        return places, [1.0] * len(places)


def begun(**fields):
    """The first training."""
    given = {"model": Llm("tiny"), "rows": Given(), "adapter": Lora(rank=2), "optimizer": Descent(lr=0.5)}
    return train.Train(**{**given, "batch_size": 4, "dtype": "float32", "steps": 4, **fields})


def further(model, **fields):
    """The one that goes on."""
    given = {"rows": Given(), "adapter": Continue(), "optimizer": Descent(lr=0.5)}
    return train.Train(model=model, **{**given, "batch_size": 4, "dtype": "float32", "steps": 4, **fields})


@pytest.fixture
def run(context, tmp_path, tiny_directory, opened, messages, preferences):
    """Makes a `Train`, with all that it goes on from; answers with its folder and metrics."""
    import peft  # noqa: F401  seconds, which are no test's own

    made, started = {}, []
    context.artefacts[Llm("tiny")] = opened(tiny_directory)

    def tables(hidden, field, first):
        scored = isinstance(hidden, train.ReferenceLogprobs)
        tokenised = hidden.rows if scored else hidden
        if isinstance(tokenised, train.TokenisedPairs):
            rows = preferences(9) if field == "prepared" else preferences(4, start=50)
            rows = tokenised.map_rows(rows, context).drop_columns(["filtered"])
            for name, values in hidden.score_rows(rows, context).items() if scored else ():
                rows = rows.append_column(name, [values])
            return rows
        rows = messages(12, start=first) if field == "prepared" else messages(4, start=50)
        return hidden.map_rows(rows, context).drop_columns(["filtered"])

    def go(stage):
        if stage in made:
            return made[stage]
        if stage.model not in context.artefacts:
            folder, metrics = go(stage.model)
            context.artefacts[stage.model] = opened(folder, stage.model.kind, digest=metrics.get("adapter_digest", ""))
        started.append(stage)
        name = f"run-{len(started)}"
        given = {"model": context.artefacts[stage.model]}
        for field, hidden in stage.expand().items():
            if field == "pristine":
                given[field] = context.artefacts[hidden]
            else:
                given[field] = opened(
                    tmp_path / name / field, "rows", tables(hidden, field, 12 * getattr(stage.rows, "number", 0))
                )
        out = tmp_path / name / "attempt"
        out.mkdir(parents=True)
        context.scratch = tmp_path / name / "scratch"
        context.scratch.mkdir()
        made[stage] = out, stage.make(context, out, **given)
        return made[stage]

    return go


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def factors(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


# --- what comes out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "base", "dtype"),
    [
        (Lora(rank=2), Float(), "float32"),
        (Lora(rank=2), Nf4(), "bfloat16"),
        (Lora(rank=4, alpha=3.0, rank_stabilised=True, targets=("q_proj", "up_proj")), Float(), "float32"),
    ],
    ids=["float", "nf4 in bf16", "rank-stabilised, some layers"],
)
def test_two_halves_are_one_training(run, adapter, base, dtype):
    """To the bit, also in bf16: what is read is the fp32 masters that were written, not the model's rounded copy."""
    fields = {"dtype": dtype, "sampler": InOrder()}
    whole, _ = run(begun(adapter=adapter, base=base, steps=5, **fields))
    half = begun(adapter=adapter, base=base, steps=2, **fields)
    folder, metrics = run(further(half, steps=3, dtype=dtype, sampler=InOrder(skip=8)))
    assert not torch.equal(*(next(reversed(factors(each).values())) for each in (run(half)[0], folder)))
    for name, each in factors(whole).items():
        assert torch.equal(factors(folder)[name], each), name
    assert metrics["adapter_digest"] == adapter_digest(whole / "adapter")
    assert metrics["loss_as_served"] == pytest.approx(metrics["loss_as_trained"], rel=2e-3)


@pytest.mark.parametrize(
    ("adapter", "base", "dtype"),
    [
        (Lora(rank=2), Float(), "bfloat16"),
        (Lora(rank=2, targets=("q_proj",), rank_stabilised=True), Nf4(double=False), "float32"),
        (Pissa(rank=2), Float(), "float32"),
        (Pissa(rank=2), Nf4(), "bfloat16"),
    ],
    ids=repr,
)
def test_steps_of_no_length_leave_the_adapter_as_it_was(run, adapter, base, dtype):
    """Weights, rank, scale and targets: the digest covers them. And how the base is held."""
    first = begun(adapter=adapter, base=base, dtype=dtype)
    before, told = run(first)
    still = further(first, steps=2, optimizer=Descent(lr=0.0), dtype=dtype)
    after, metrics = run(still)
    assert metrics["adapter_digest"] == told["adapter_digest"]
    cards = [json.loads((each / "adapter" / "graftline.json").read_text()) for each in (before, after)]
    assert cards[1]["base"] == cards[0]["base"] and cards[1]["class"] == "Continue"
    assert cards[1]["went_on_from"] == told["adapter_digest"]
    assert cards[1]["held_in_training"] == cards[0]["base"]["held"] == adapter.valid_on(base)
    assert metrics["loss_as_served"] == pytest.approx(told["loss_as_served"], rel=1e-6)


def test_it_starts_at_the_loss_it_had_been_trained_to(run, context):
    first = begun(held_out=Given(number=1), adapter=Pissa(rank=2), base=Nf4(), optimizer=AdamW(lr=0.01), steps=6)
    _, told = run(first)
    _, metrics = run(further(first, held_out=Given(number=1), optimizer=AdamW(lr=0.01), steps=6))
    assert metrics["eval_loss_before"] == pytest.approx(told["eval_loss"], rel=1e-5)
    assert metrics["eval_loss"] < told["eval_loss"] < told["eval_loss_before"] - 0.01


def test_what_comes_out_is_a_plain_adapter_on_the_pristine_base(run, tiny_directory):
    from peft import PeftModel

    from graftline.stages.lm.load import load_model

    first = begun(adapter=Lora(rank=3, alpha=5.0))
    stage = further(further(first), steps=2)
    folder, metrics = run(stage)
    base = load_model(tiny_directory / "model", "float32")
    peft = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    assert peft.peft_config["default"].r == 3 and peft.peft_config["default"].lora_alpha == 5.0
    assert not torch.allclose(logits(peft), logits(load_model(tiny_directory / "model", "float32")), atol=1e-3)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny" and str(tiny_directory) not in json.dumps(config)
    assert stage.kind == "adapter" and metrics["trainable_parameters"] == sum(
        each.numel() for each in factors(folder).values()
    )


def test_layers_of_different_ranks_go_on(tiny_directory, tmp_path):
    """As `merge.Concat` leaves them."""
    from graftline.stages.merge.concat import write_peft

    folder = tmp_path / "stacked"
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    shapes = {"model.layers.0.mlp.up_proj": (128, 64, 3), "model.layers.1.self_attn.q_proj": (64, 64, 5)}
    write_peft(
        {
            path: (torch.randn(rank, into, generator=draw), torch.randn(out, rank, generator=draw))
            for path, (out, into, rank) in shapes.items()
        },
        folder,
        "tiny",
    )
    attached = build(tiny_directory / "model", "bfloat16", Float(), Continue(), 0, "cpu", folder)
    masters = {name: attached.exact[name] for name in attached.parameters}
    (tmp_path / "out").mkdir()
    attached.export(tmp_path / "out", masters, tiny_directory / "model", "tiny")
    assert adapter_digest(tmp_path / "out" / "adapter") == adapter_digest(folder)


# --- preferences after demonstrations ---------------------------------------------------------------------------


def preferring(model, **fields):
    given = {"rows": Pairs(), "objective": Dpo(), "batch_size": 9, "optimizer": AdamW(lr=0.01)}
    return further(model, **{**given, **fields})


@pytest.mark.parametrize("adapter", [Lora(rank=2), Pissa(rank=2)], ids=repr)
@pytest.mark.parametrize("base", [Float(), Nf4()], ids=repr)
@pytest.mark.parametrize("objective", [Dpo(), Dpo(precomputed=True)], ids=["beside", "precomputed"])
def test_dpo_after_sft_has_the_sft_adapter_as_its_reference(
    run, context, tiny_directory, preferences, adapter, base, objective
):
    first = begun(adapter=adapter, base=base, optimizer=AdamW(lr=0.02), steps=8)
    stage = preferring(first, steps=2, objective=objective)
    hidden = preferring(first, objective=Dpo(precomputed=True)).expand()["prepared"]
    assert isinstance(hidden, train.ReferenceLogprobs) and hidden.model == first and hidden.adapter == Continue()
    run(stage)
    assert context.values("loss")[-2] == pytest.approx(math.log(2), abs=1e-5)
    rows = hidden.rows.map_rows(preferences(3), context).drop_columns(["filtered"])
    scores = hidden.score_rows(rows, context)
    arrays = [{name: np.array(ids) for name, ids in row.items()} for row in rows.select(list(hidden.needs)).to_pylist()]
    sums = {}
    for name, plug, holds, folder in (
        ("sft", Continue(), Float(), run(first)[0] / "adapter"),
        ("base", Lora(), Float(), None),
    ):
        model = build(tiny_directory / "model", "float32", holds, plug, 0, "cpu", folder).model.eval()
        with torch.no_grad():
            sums[name] = answer_logprobs(model, pack_pairs(arrays), 3)[0][:, 0].tolist()
    assert scores["reference_chosen"] == pytest.approx(sums["sft"], abs=1e-3)
    assert scores["reference_chosen"] != pytest.approx(sums["base"], abs=0.1), "the adapter switched off"


def test_dpo_may_still_ask_for_the_base(run, context):
    first = begun(optimizer=AdamW(lr=0.02), steps=8)
    stage = preferring(first, objective=Dpo(reference="base"), steps=1)
    assert stage.expand()["prepared"].model == Llm("tiny") and stage.expand()["prepared"].adapter is None
    run(stage)
    assert abs(context.values("loss")[-1] - math.log(2)) > 1e-3


def test_rows_are_tokenised_once_for_the_whole_chain():
    first = begun()
    assert further(further(first)).expand()["prepared"] == first.expand()["prepared"]


# --- lineage ----------------------------------------------------------------------------------------------------


def test_rows_that_the_first_training_saw_cannot_be_held_out(run):
    first = begun(rows=Given(number=4))  # m048 to m059; m050 to m053 are held out
    with pytest.raises(HeldOutLeak, match=r"^Train\.model: 4 of 12 training rows.*m050 is a held-out row"):
        run(further(first, held_out=Given(number=9)))
    twice = further(further(first))
    with pytest.raises(HeldOutLeak, match=r"^Train\.model: 4 of 24"):
        run(further(twice, held_out=Given(number=9)))
    folder, _ = run(twice)
    ids = pq.read_table(folder / "trained_on.parquet")["id"].to_pylist()
    assert ids == [f"m{index:03d}" for index in [*range(12), *range(48, 60)]]


def test_of_a_tuned_model_too(run):
    """Whose rows are no adapter's, but were seen all the same."""
    tuned = begun(adapter=Full(), rows=Given(number=4), steps=1, optimizer=Descent(lr=0.01))
    with pytest.raises(HeldOutLeak, match=r"^Train\.model: 4 of 12"):
        run(begun(model=tuned, held_out=Given(number=9)))


def test_an_adapter_of_a_tuned_model_goes_on_over_that_model(run):
    tuned = begun(adapter=Full(), steps=1, optimizer=Descent(lr=0.5))
    first = begun(model=tuned)
    stage = further(first)
    assert stage.expand()["pristine"] == tuned
    _, metrics = run(stage)
    assert metrics["weights_digest"] == run(first)[1]["weights_digest"] == run(tuned)[1]["weights_digest"]


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Llm("tiny"), begun(adapter=Full()), begun(adapter=Hft())], ids=repr)
def test_a_model_is_no_adapter(model):
    with pytest.raises(InvalidField, match=r"^Train\.adapter: .*goes on from an adapter.*makes a model"):
        further(model)


def test_a_new_adapter_on_an_adapter_is_refused_with_the_way_out():
    with pytest.raises(WrongKind, match=r"^Train\.model: .*train\.Continue\(\)"):
        begun(model=begun())
    with pytest.raises(InvalidField, match=r"^Train\.base: .*Leave it out"):
        further(begun(base=Nf4()), base=Nf4())
    with pytest.raises(InvalidField, match=r"dropout"):
        further(begun(), rows=Pairs(), objective=Dpo(), adapter=Continue(dropout=0.1))


def test_an_adapter_of_another_base_is_refused(run, tiny_directory, tmp_path):
    first = begun()
    folder, _ = run(first)
    other = tmp_path / "other"
    shutil.copytree(tiny_directory, other)
    (other / "model" / "weights_digest.json").unlink(missing_ok=True)
    weights = other / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(AdapterMismatch, match=r"was made for tiny with the weights .*Use the base it was trained on"):
        build(other / "model", "float32", Float(), Continue(), 0, "cpu", folder / "adapter")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_is_no_plain_lora_is_refused(run, tiny_directory, change, complaint):
    folder, _ = run(begun())
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(AdapterMismatch, match=complaint):
        build(tiny_directory / "model", "float32", Float(), Continue(), 0, "cpu", folder / "adapter")


def test_a_layer_that_the_base_lacks_is_refused(run, tiny_directory):
    folder, _ = run(begun())
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    for part in "AB":
        name = f"base_model.model.model.layers.0.mlp.up_proj.lora_{part}.weight"
        tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(AdapterMismatch, match=r"changes model\.layers\.7\.mlp\.up_proj"):
        build(tiny_directory / "model", "float32", Float(), Continue(), 0, "cpu", folder / "adapter")


# --- loops ------------------------------------------------------------------------------------------------------


def test_a_loop_goes_on_from_the_round_before():
    first = begun()
    loop = Repeat(body=further(Previous(), seed=3), start=first, at_most=3)
    assert loop.kind == "adapter"
    rounds = list(loop.foreseen().values())
    assert rounds[0].model == first and rounds[1].model == rounds[0] and rounds[2].model == rounds[1]
    assert {each.expand()["pristine"] for each in rounds} == {Llm("tiny")}
    assert rounds[2].expand()["prepared"] == first.expand()["prepared"]
    with pytest.raises(InvalidField, match="goes on from an adapter"):
        Repeat(body=further(Previous()), start=Llm("tiny"), at_most=2)


@pytest.fixture
def pipeline(tmp_path, tiny_directory):
    """Runs a pipeline in this process. Imports take seconds, which are no test's own."""
    from graftline.pipelines import run

    build(tiny_directory / "model", "float32", Float(), Lora(), 0, "cpu")
    return lambda **stages: run(stages, str(tmp_path / "store"), base=tmp_path, name="p", address="here")


def test_a_pipeline_trains_in_rounds(pipeline, tmp_path):
    """And what any round saw is no test row of the last one."""
    from graftline.stages import evaluate, read

    lines = [{"prompt": f"the water is cold {place}", "completion": ("a", "b")[place % 2]} for place in range(6)]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"rows": read.Jsonl(path="seen.jsonl"), "optimizer": AdamW(lr=0.01), "steps": 1}
    loop = Repeat(body=further(Previous(), **fields), start=begun(**fields), at_most=2)
    leak = evaluate.Compare(
        model=Llm("tiny"), adapters={"thrice": loop}, rows=fields["rows"], metrics=(evaluate.Loss(),)
    )
    with pytest.raises(HeldOutLeak, match=r"Compare\.adapters\.thrice: 6 of 6"):
        pipeline(loop=loop, leak=leak)
    again = pipeline(loop=loop)
    assert again["loop"].metrics["rounds_made"] == 2 and not again.ran
    assert pq.read_table(again["loop"].files("trained_on.parquet")[0]).num_rows == 6
