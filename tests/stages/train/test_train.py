"""`Train` as a stage: what it refuses, what it reads and holds, and whole runs on the built-in `tiny` model."""

import json
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import torch

from graftline.stages import Llm, Resources, Source, train
from graftline.stages.errors import GraftlineError, HeldOutLeak, InvalidField, MissingColumn, WrongKind
from graftline.stages.rows import FIXED
from graftline.stages.train import base as bases
from graftline.stages.train.export import adapter_digest
from graftline.stages.value_graph import inputs


class Given(Source):
    """Rows that a test has."""

    number: int = 0


class Chosen(Source):
    """Rows with a column more."""

    def columns_made(self):
        return {**FIXED, "chosen": "string"}


ROWS, HELD = Given(), Given(number=1)
QUICK = {"epochs": 2.0, "batch_size": 4, "dtype": "float32", "bin_tokens": 128}


def stage(**fields):
    return train.Train(**{"model": Llm("tiny"), "rows": ROWS, **fields})


# --- the value --------------------------------------------------------------------------------------------------


def test_its_kind_is_its_adapters():
    assert stage().kind == "adapter" and stage(adapter=train.Full()).kind == "model"
    train.Train(model=stage(adapter=train.Full()), rows=ROWS)
    with pytest.raises(WrongKind, match=r"Train.model: .*valid on no pristine base"):
        train.Train(model=stage(), rows=ROWS)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"epochs": 0.0}, "epochs"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": 0}, "workers"),
        ({"dtype": "float16"}, "dtype"),
        ({"adapter": train.AdamW()}, "adapter"),
        ({"optimizer": "adamw"}, "optimizer"),
        ({"held_out": Llm("tiny")}, "held_out"),
        ({"rank": 8}, "rank"),
        ({"workers": 2, "resources": Resources(cpus=0.0)}, "resources.cpus"),
    ],
)
def test_wrong_fields_are_refused_with_their_path(fields, path):
    with pytest.raises(InvalidField, match=rf"^Train\.{path}"):
        stage(**fields)


def test_rows_without_messages_are_refused():
    class Preferences(train.Sft):
        needs = {"chosen": "string"}

    with pytest.raises(MissingColumn, match=r"Train.rows.*'chosen'"):
        stage(objective=Preferences())
    with pytest.raises(MissingColumn, match=r"Train.held_out.*'chosen'"):
        stage(rows=Chosen(), held_out=HELD, objective=Preferences())


def test_the_rows_themselves_cannot_be_held_out():
    with pytest.raises(HeldOutLeak, match=r"^Train\.held_out"):
        stage(held_out=ROWS)


def test_it_reads_hidden_tokenised_rows_which_trials_share():
    one = stage(held_out=HELD, max_length=99)
    tokenised = {each for each in inputs(one) if isinstance(each, train.Tokenised)}
    assert {each.rows for each in tokenised} == {ROWS, HELD} and {each.max_length for each in tokenised} == {99}
    other = one.replace("adapter.rank", 32).replace("optimizer.lr", 0.1).replace("seed", 5)
    assert one.expand() == other.expand() and one != other
    assert set(stage().expand()) == {"prepared"}
    assert set(FIXED) < set(one.expand()["prepared"].columns)


def test_its_footprint():
    assert stage().whole_node and stage().footprint() == (Resources(),)
    assert stage(resources=Resources(cpus=2.0)).footprint() == (Resources(cpus=2.0),)
    two = Resources(cpus=0.9, threads=1)
    assert stage(workers=2).footprint() == (Resources(cpus=0.0), two, two)
    given = stage(workers=3, resources=Resources(cpus=4.0)).footprint()
    assert given == (Resources(cpus=0.0), *[Resources(cpus=4.0, threads=4)] * 3)


# --- whole runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(context, tmp_path, tiny_directory, opened, messages):
    """Makes a `Train` with the real tokenised rows; answers with its folder and metrics."""
    import peft  # noqa: F401  seconds, which are no test's own

    def go(made, name="out", rows=None, held=None, within=None):
        within = within or context
        given = {"model": opened(tiny_directory)}
        within.artefacts[made.model] = given["model"]
        for field, hidden in made.expand().items():
            table = (rows or messages(12)) if field == "prepared" else (held or messages(4, start=50))
            tokens = hidden.map_rows(table, within).drop_columns(["filtered"])
            folder = tmp_path / name / field
            given[field] = opened(folder, "rows", tokens)
        out = tmp_path / name / "attempt"
        out.mkdir(parents=True)
        return out, made.make(within, out, **given)

    return go


def test_a_lora_run(run, context, tiny_directory):
    from graftline.stages.lm.adapters import read, refuse_other_base
    from graftline.stages.lm.load import load_model, model_digest

    out, metrics = run(stage(held_out=HELD, adapter=train.Lora(rank=2), optimizer=train.AdamW(lr=0.01), **QUICK))
    digest = model_digest(tiny_directory / "model")
    assert metrics["steps"] == 6 and metrics["rows"] == 12 and metrics["dtype"] == "float32"
    assert metrics["eval_loss"] < metrics["eval_loss_before"] == context.values("eval_loss")[0]
    assert metrics["train_loss"] == pytest.approx(sum(context.values("loss")[-3:]) / 3)
    assert metrics["loss_as_trained"] == metrics["eval_loss"] == context.values("eval_loss")[-1]
    assert metrics["loss_as_served"] == pytest.approx(metrics["eval_loss"], abs=1e-6)
    assert metrics["adapter_digest"] == adapter_digest(out / "adapter") and metrics["weights_digest"] == digest
    assert metrics["trainable_parameters"] == 2 * 2 * (4 * 64 + 2 * (64 + 32) + 64 + 64 + 3 * (64 + 128) - 128)
    assert context.progressed[-1] == (6, 6) and metrics["tokens_per_second"] > 0
    card = json.loads((out / "adapter" / "graftline.json").read_text())
    assert card["base"] == {"name": "tiny", "weights_digest": digest, "held": "none"} and card["rank"] == 2
    assert card["adapter_digest"] == metrics["adapter_digest"]
    refuse_other_base(out / "adapter", digest)
    assert len(read(out / "adapter", load_model(tiny_directory / "model", "float32"), digest)) == 14
    trained_on = pq.read_table(out / "trained_on.parquet")
    assert trained_on.column_names == ["id", "parents", "group"] and trained_on.num_rows == 12
    assert sorted(path.name for path in out.iterdir()) == ["adapter", "trained_on.parquet"]
    assert {path.stat().st_mode & 0o777 for path in (out / "adapter").iterdir()} == {0o644}


def test_nothing_of_this_machine_is_in_an_adapter(run, tmp_path):
    out, _ = run(stage(steps=1, label="a label", **QUICK))
    for path in (out / "adapter").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes() and b"a label" not in path.read_bytes(), path


def test_a_full_run_makes_a_model(run, tiny_directory):
    from graftline.stages.lm.load import load_model, load_tokenizer, model_digest

    made = stage(held_out=HELD, adapter=train.Full(), optimizer=train.AdamW(lr=0.003), **QUICK)
    out, metrics = run(made)
    assert sorted(path.name for path in out.iterdir()) == ["model", "trained_on.parquet"]
    assert metrics["eval_loss"] < metrics["eval_loss_before"] and "adapter_digest" not in metrics
    assert metrics["loss_as_served"] == pytest.approx(metrics["eval_loss"], abs=1e-6)
    assert metrics["weights_digest"] == model_digest(out / "model") != model_digest(tiny_directory / "model")
    assert load_tokenizer(out / "model").chat_template == load_tokenizer(tiny_directory / "model").chat_template
    size = sum(each.numel() for each in load_model(out / "model", "float32").parameters())
    assert metrics["trainable_parameters"] == size


def test_killed_and_run_again_it_ends_with_the_same_digest(run, context, tmp_path):
    made = stage(adapter=train.Lora(rank=2, dropout=0.1), checkpoint_every=2, **{**QUICK, "dtype": "auto"})
    _, straight = run(made, "straight")
    killed = type(context)(tmp_path / "killed-scratch")
    killed.scratch.mkdir()

    def kill(done, total, **numbers):
        killed.progressed.append((done, total))
        if len(killed.progressed) == 4:
            raise KeyboardInterrupt

    killed.progress = kill
    with pytest.raises(KeyboardInterrupt):
        run(made, "killed", within=killed)
    assert (killed.scratch / "dtype").read_text() == straight["dtype"]
    _, resumed = run(made, "again", within=killed)
    assert [done for done, _ in killed.progressed] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert resumed["adapter_digest"] == straight["adapter_digest"] and resumed["train_loss"] == straight["train_loss"]


BASES = [kind for name in dir(bases) if isinstance(kind := getattr(bases, name), type)]


@pytest.mark.parametrize("base", BASES, ids=lambda kind: kind.__name__)
def test_looking_at_rows_drops_no_gradient(run, context, base, repacking):
    """A forward pass in evaluation mode repacks bitsandbytes' 4-bit weights on some processors, and what is trained
    after it has no gradient through them: through those of layers without a LoRA, ours computes the others."""
    some = train.Lora(targets=("q_proj",))
    digests = []
    for name, fields in (("never", {}), ("often", {"held_out": HELD, "eval_every": 1})):
        context.scratch = context.scratch.parent / name
        context.scratch.mkdir()
        made = stage(base=base(), adapter=some, optimizer=train.AdamW(lr=0.01), **fields, **QUICK | {"epochs": 1.0})
        digests.append(run(made, name)[1]["adapter_digest"])
    assert digests[0] == digests[1]


def test_epochs_count_rows_and_steps_replace_them(run, context):
    assert run(stage(**QUICK | {"epochs": 0.5}), "half")[1]["steps"] == 2
    context.scratch = context.scratch / "other"
    context.scratch.mkdir()
    metrics = run(stage(steps=3, **QUICK | {"batch_size": 100}), "steps")[1]
    assert metrics["steps"] == 3 and "eval_loss" not in metrics
    assert metrics["loss_as_served"] == pytest.approx(metrics["loss_as_trained"], abs=1e-6)


def test_training_rows_that_leak_are_refused_by_name(run, messages):
    with pytest.raises(HeldOutLeak, match=r"Train.rows: 2 of 12 training rows.*m010 is a held-out row"):
        run(stage(held_out=HELD, **QUICK), held=messages(4, start=10))


def test_threads_are_those_given(run, context):
    context.resources = Resources(cpus=2.0, threads=2)
    before = torch.get_num_threads()
    try:
        run(stage(steps=1, **QUICK))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Failing(train.Sft):
    """It fails once, after a few steps."""

    def loss(self, model, batch, context):
        if context.training and context.step == 3 and not Failing.done:
            Failing.done = True
            raise RuntimeError("once")
        return super().loss(model, batch, context)

    done: ClassVar[bool] = False


@pytest.fixture
def pipeline(tmp_path, tiny_directory):
    """Runs a pipeline in this process. Imports take seconds, which are no test's own."""
    from graftline.pipelines import run
    from graftline.stages.train.build import build

    build(tiny_directory / "model", "float32", train.Float(), train.Lora(), 0, "cpu")

    def go(made, store):
        return run(made, str(tmp_path / store), base=tmp_path, name="p", address="here")["result"]

    go(Llm("tiny"), "imports")
    return go


def test_what_has_the_same_name_is_not_resumed(pipeline, tmp_path):
    """Ray Train resumes whatever ran under the same name: with a label for a name, somebody else's weights."""
    from graftline.stages import read

    lines = [{"prompt": f"the water is cold {place}", "completion": ("a", "b")[place % 2]} for place in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read.Jsonl(path="rows.jsonl")
    Failing.done = False
    first = stage(rows=rows, objective=Failing(), steps=4, checkpoint_every=1, label="tuned", **QUICK)
    with pytest.raises(GraftlineError, match="once"):
        pipeline(first, "store")
    assert list(tmp_path.glob("store/scratch/Train-*/checkpoints/step-*")), "there is one to resume"
    other = first.replace("optimizer.lr", 0.01)
    made = pipeline(other, "store")
    assert [line["step"] for line in made.lines("log.jsonl") if "lr" in line] == [1, 2, 3, 4]
    assert made.digest == pipeline(other, "fresh").digest


def test_from_equal_rows_equal_adapters(pipeline, tmp_path):
    """Two fresh stores make the same adapter, bit for bit; a single other answer makes another."""
    from graftline.stages import read

    def made(store, last):
        answers = ("a", "b", "a", last)
        lines = [{"prompt": f"the water is cold {place}", "completion": each} for place, each in enumerate(answers)]
        (tmp_path / f"{last}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return pipeline(stage(rows=read.Jsonl(path=f"{last}.jsonl"), steps=1, **QUICK), store)

    one, other, changed = made("one", "b"), made("other", "b"), made("one", "a")
    assert one.path != other.path, "each was made"
    assert one.metrics["adapter_digest"] == other.metrics["adapter_digest"] != changed.metrics["adapter_digest"]
    assert one.digest == other.digest != changed.digest
