"""Training as a stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from graftline.stages.errors import HeldOutLeak, InvalidField, WrongKind
from graftline.stages.expected import Expected, Given, Mark, Usage, product, worst
from graftline.stages.lineage import TRAINED_ON, refuse_leak, together, trained_on
from graftline.stages.lm.reference import pristine_base, refuse_endpoint
from graftline.stages.rows import Columns
from graftline.stages.specification import Execution
from graftline.stages.stage import Context, Kind, Model, Resources, Rows, Stage
from graftline.stages.train.adapter.lora import Lora
from graftline.stages.train.base.float import Float
from graftline.stages.train.objective.sft import Sft
from graftline.stages.train.optimizer.adamw import AdamW
from graftline.stages.train.plugs import Adapter, Base, Objective, Optimizer, Sampler, Start
from graftline.stages.train.sampler.shuffled import Shuffled

WORKER_CPUS = 0.9
"""Of one worker among several: two of them and a driver's own 0.1 fit two CPUs."""


class Train(Stage):
    """Fine-tunes a model on rows; makes an adapter, or a model where the adapter plug is full tuning.

    Args:
        model: what to start from; an adapter, with `adapter=Continue()`.
        rows: what to train on, with `messages` that end in an assistant turn.
        held_out: rows to measure the loss on, before, during and after; none may be, be made from, or share a group
            with a training row, nor with a row that `model` was trained on.
        base: how the frozen weights are held (of an adapter that is gone on with: as they were).
        adapter: what is trainable.
        objective: the loss.
        optimizer: how parameters move.
        sampler: which rows a step sees.
        epochs: passes over the rows (3 = each row three times; a fraction ends early).
        steps: optimizer steps, instead of epochs (fewer where the sampler leaves rows out).
        batch_size: rows of one optimizer step, over all workers (at most all rows).
        max_length: tokens of a row; longer ones are left out and counted, never cut.
        seed: of the adapter's start, the order and the dropout.
        dtype: number format of the base and the activations (what trains is kept in fp32): `auto` takes the faster of
            bf16 and fp32 by a short probe, and the artefact says which.
        bin_tokens: tokens of one forward pass; rows are packed into such bins, exactly. A pass reads all weights, so
            few tokens are slow, and it keeps its activations: 0.7 MB a token of SmolLM2-135M in bf16.
        eval_every: steps between two evaluations (None: an epoch; 0: at the end alone).
        checkpoint_every: steps between two checkpoints (None: every 30 seconds).
        workers: processes that share each batch. With one, the loop runs in the stage's own task; more run under Ray
            Train, each with `resources` (default: 0.9 CPUs and one thread). On two cores, a worker a core makes 1.2
            times as many tokens as one with both, in bf16 with AMX and 1.6 times the memory; in fp32, 0.9 [measured].
        retries: how often workers that died are started again from the last checkpoint.

    Raises:
        HeldOutLeak: a training row is, descends from, or shares a group with a held-out row.
        RunError: the loss is no longer finite; the message names step and rows.
        WorkerDied: workers died too often.

    Property tested: killed after any step and run again, it ends with the same bits; two workers follow one worker's
    loss curve; the export has the trained model's loss.
    """

    method = "train.train"
    origin = "Graftline"
    whole_node = True

    model: Model
    rows: Rows
    held_out: Rows | None = None
    base: Base = Float()
    adapter: Adapter = Lora()
    objective: Objective = Sft()
    optimizer: Optimizer = AdamW()
    sampler: Sampler = Shuffled()
    epochs: Annotated[float, Field(gt=0)] = 3.0
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 8
    max_length: Annotated[int, Field(ge=2)] = 1024
    seed: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    bin_tokens: Annotated[int, Field(ge=1), Execution] = 1024
    eval_every: Annotated[int | None, Field(ge=0), Execution] = None
    checkpoint_every: Annotated[int | None, Field(ge=1), Execution] = None
    workers: Annotated[int, Field(ge=1), Execution] = 1
    retries: Annotated[int, Field(ge=0), Execution] = 2

    def check(self) -> None:
        if self.adapter.starts_from == "adapter":
            if not self.model.placeholder and self.model.kind != "adapter":
                raise InvalidField(
                    f"{self.adapter!r} goes on from an adapter, {self.model.name} makes a {self.model.kind}",
                    where="Train.adapter",
                    do="give the adapter as model=, or start anew with train.Lora()",
                )
            if self.base != Float():
                raise InvalidField(
                    "an adapter is trained on over the base that it belongs to, held as its card says",
                    where="Train.base",
                    do="leave it out",
                )
        elif self.model.kind == "adapter":
            raise WrongKind(
                f"{self.model.name} makes an adapter; a new one would be valid on no pristine base",
                where="Train.model",
                do="go on from it with adapter=train.Continue(), train on its base, or make a model of it first",
            )
        refuse_endpoint(self.model, where="Train.model", why="it cannot be trained")
        if self.held_out is not None and self.held_out == self.rows:
            raise HeldOutLeak(
                "the same rows are trained on and held out", where="Train.held_out", do="use two parts of a split"
            )
        if self.kind == "model" and self.base.held != "none":
            raise InvalidField(
                f"{self.adapter!r} trains the base's own weights, and quantised ones have no gradient",
                where="Train.base",
                do="use base=train.Float(), or an adapter such as train.Lora()",
            )
        if self.workers > 1 and self.resources and self.resources.cpus == 0:
            raise InvalidField("a worker needs CPUs", where="Train.resources.cpus", do="give each worker some")
        self.objective.suits(self.adapter)
        self.optimizer.suits(self.adapter)

    @property
    def kind(self) -> Kind:
        return self.adapter.makes

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"rows": self.objective.needs, "held_out": self.objective.needs}

    def expand(self) -> Mapping[str, Stage]:
        start = Start(self.model, self.base, self.adapter, self.seed, self.max_length, self.dtype)
        prepared = {"prepared": self.objective.prepare(self.rows, start)}
        if self.held_out is not None:
            prepared["prepared_held_out"] = self.objective.prepare(self.held_out, start)
        if self.adapter.starts_from == "adapter":
            prepared["pristine"] = start.pristine
        return prepared

    def rows_seen(self, rows: int) -> int:
        """How many rows it looks at in all, each as often as it does."""
        return self.steps * min(self.batch_size, rows) if self.steps else max(1, round(self.epochs * rows))

    def expected(self, given: Given) -> Expected:
        rows, reader = given.rows(self.expand()["prepared"]), given.reader(self.model)
        seen = None if rows.count is None else self.rows_seen(rows.count)
        trained = product(seen, rows.mean(lambda row: self.objective.tokens(row, reader)))
        mark: Mark = "<=" if self.sampler.leaves_out else ""
        return Expected(usage=Usage(tokens_trained=trained, mark=worst(rows.mark, mark)))

    def footprint(self) -> tuple[Resources, ...]:
        if self.workers == 1:
            return (self.resources or Resources(),)
        return (Resources(cpus=0.0), *[self._each_worker()] * self.workers)

    def _each_worker(self) -> Resources:
        given = self.resources or Resources()
        cpus = WORKER_CPUS if given.cpus is None else given.cpus
        return Resources(cpus=cpus, gpus=given.gpus, memory=given.memory, threads=given.threads or max(1, round(cpus)))

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        import pyarrow.parquet as pq

        from graftline.stages.lm.load import probe_dtype
        from graftline.stages.train.worker import Job, work

        rows = inputs["prepared"].rows()
        held_out = inputs["prepared_held_out"].rows() if self.held_out is not None else None
        known = trained_on(inputs["model"])
        if held_out is not None:
            refuse_leak(rows, held_out, where=f"{self.name}.rows")
            if known is not None:
                refuse_leak(known, held_out, where=f"{self.name}.model")
        dtype = _kept(context.scratch / "dtype", probe_dtype) if self.dtype == "auto" else self.dtype
        each = context.resources if self.workers == 1 else self._each_worker()
        job = Job(
            stage=self,
            model=inputs.get("pristine", inputs["model"]),
            base=_name(pristine_base(self.model)),
            begun=inputs["model"] if "pristine" in inputs else None,
            dtype=dtype,
            threads=each.threads or 1,
            device="cuda" if each.gpus else "cpu",
        )
        if self.workers == 1:
            from graftline.stages.train.collectives import Alone
            from graftline.stages.train.reporting import FolderReporter

            reporter = FolderReporter(context.scratch / "checkpoints", context.log, context.progress)
            metrics = work(job, rows, held_out, reporter, Alone(), out)
        else:
            from graftline.stages.train.ray_workers import work_on_ray

            metrics = work_on_ray(job, rows, held_out, context, out, self.workers, each, self.retries)
        pq.write_table(together([known, rows]), out / TRAINED_ON, compression="zstd")
        return {**metrics, "_calls": {"tokens_trained": metrics["tokens"]}}


def _name(model: Stage) -> str:
    """What exported files call the base: the name a reference gives it, never a label."""
    named = getattr(model, "model", None)
    return named if isinstance(named, str) else type(model).__name__


def _kept(file: Path, decide: Any) -> str:
    """What was decided before a kill, so that a resumed run computes in the same number format."""
    if file.exists():
        return file.read_text(encoding="utf-8")
    decided = str(decide())
    partial = file.with_suffix(".part")
    partial.write_text(decided, encoding="utf-8")
    partial.replace(file)
    return decided
