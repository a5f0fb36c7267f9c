"""Two real Ray Train workers on the session's two CPUs."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from graftline.stages import Llm, Source, train
from graftline.stages.errors import RunError, WorkerDied


class Given(Source):
    """Rows that a test has."""

    number: int = 0


ROWS, HELD = Given(), Given(number=1)


def stage(**fields):
    settings = {"epochs": 2.0, "batch_size": 5, "dtype": "float32", "bin_tokens": 64, "optimizer": train.AdamW(lr=0.01)}
    return train.Train(model=Llm("tiny"), rows=ROWS, held_out=HELD, **{**settings, **fields})


@pytest.fixture
def run(ray_cluster, context, tmp_path, tiny_directory, opened, messages):
    """Makes a `Train`, with several workers in a Ray task as `graftline run` does; answers with its metrics, and
    `context` has what was logged."""
    import ray
    from ray import cloudpickle

    for module in {__name__, type(context).__module__}:  # workers cannot import them
        cloudpickle.register_pickle_by_value(sys.modules[module])

    def go(made, within=context, name="out"):
        given = {"model": opened(tiny_directory)}
        within.artefacts[made.model] = given["model"]
        for field, hidden in made.expand().items():
            table = messages(12) if field == "prepared" else messages(4, start=50)
            tokens = hidden.map_rows(table, within).drop_columns(["filtered"])
            given[field] = opened(tmp_path / name / field, "rows", tokens)
        out = tmp_path / name / "attempt"
        out.mkdir(parents=True)
        if made.workers == 1:
            metrics = made.make(within, out, **given)
        else:
            task = ray.remote(num_cpus=0)(in_task)
            try:
                metrics, within.logged, within.progressed = ray.get(task.remote(made, within, out, given))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
        assert (out / "adapter" / "graftline.json").exists() and (out / "trained_on.parquet").exists()
        return metrics

    return go


def in_task(made, within, out, given):
    metrics = made.make(within, out, **given)
    return metrics, within.logged, within.progressed


def another(context, tmp_path, name):
    made = type(context)(tmp_path / name)
    made.scratch.mkdir()
    return made


@pytest.mark.real
def test_two_workers_follow_one_workers_loss_curve(run, context, tmp_path):
    alone = another(context, tmp_path, "alone")
    one = run(stage(), within=alone, name="one")
    started = time.monotonic()
    two = run(stage(workers=2), name="two")
    assert time.monotonic() - started < 60
    assert [step for step, _ in context.logged] == [step for step, _ in alone.logged]
    for name in ("loss", "eval_loss", "lr", "grad_norm"):
        assert context.values(name) == pytest.approx(alone.values(name), abs=1e-5), name
    for name in ("steps", "tokens", "rows", "trainable_parameters", "weights_digest"):
        assert two[name] == one[name]
    for name in ("eval_loss", "train_loss", "loss_as_served", "eval_loss_before"):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name
    assert context.progressed[-1] == (5, 5)


class Dying(train.Sft):
    """Its process is killed once, in the middle."""

    flag: str

    def loss(self, model, batch, context):
        if context.training and context.step == 33 and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch, context)


@pytest.mark.slow
def test_a_killed_worker_is_started_again_from_the_last_checkpoint(run, context, tmp_path):
    made = stage(workers=2, epochs=40.0, checkpoint_every=5)
    alone = another(context, tmp_path, "straight")
    straight = run(made, within=alone, name="straight")
    killed = run(made.replace("objective", Dying(flag=str(tmp_path / "died"))), name="killed")
    assert (tmp_path / "died").exists() and killed["adapter_digest"] == straight["adapter_digest"]
    assert [step for step, _ in context.logged] == [step for step, _ in alone.logged], "each step once"
    assert context.values("loss") == alone.values("loss")
    assert context.progressed.count((31, 96)) == 2, "steps after the checkpoint are made again"


@pytest.mark.slow
def test_what_fails_the_same_way_each_time_is_not_tried_again(run):
    class Broken(train.Sft):
        def loss(self, model, batch, context):
            out = super().loss(model, batch, context)
            return type(out)(out.loss_sum * float("nan"), out.weight, out.per_row)

    with pytest.raises(RunError, match="the loss is nan at step 1"):
        run(stage(workers=2, objective=Broken()))


@pytest.mark.slow
def test_workers_that_keep_dying_end_the_stage(run):
    class Deadly(train.Sft):
        def loss(self, model, batch, context):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerDied, match="training failed 2 times"):
        run(stage(workers=2, objective=Deadly(), retries=1))
