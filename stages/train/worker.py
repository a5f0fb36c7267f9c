"""One worker's whole job: build, train, export, and measure what was exported as a server would load it.

The same function runs in the stage's own process and in each of Ray Train's workers.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.lm.held import held_of
from graftline.stages.train.build import build
from graftline.stages.train.checkpoint import Outcome
from graftline.stages.train.collectives import Alone
from graftline.stages.train.export import adapter_digest, write_card
from graftline.stages.train.loop import Settings, evaluate, held_bins, train
from graftline.stages.train.prepared import PreparedRows
from graftline.stages.train.reporting import writing
from graftline.stages.train.source import IndexPlan

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.artefact import Artefact
    from graftline.stages.train.collectives import Ranks
    from graftline.stages.train.reporting import Reporter
    from graftline.stages.train.train import Train

PROBE_ROWS = 64
"""Training rows on which an export is measured where there are no held-out rows."""


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    Args:
        stage: the `Train`.
        model: the base's artefact.
        begun: the artefact of the adapter that training goes on from (None: it starts anew).
        base: the base's name, for the exported files.
        dtype: the number format, decided once for all workers.
        threads: torch threads of a worker.
        device: `cpu` or `cuda`.
    """

    stage: Train
    model: Artefact
    base: str
    dtype: str
    threads: int
    device: str = "cpu"
    begun: Artefact | None = None

    @property
    def adapter(self) -> Path | None:
        """The directory of the adapter that training goes on from."""
        return None if self.begun is None else self.begun.directory("adapter")

    @property
    def held(self) -> str:
        """How the base is held in training."""
        return self.stage.base.held if self.adapter is None else held_of(self.adapter)

    @property
    def valid_on(self) -> str:
        """How the base is held that what is exported belongs on."""
        return self.stage.adapter.valid_on(self.stage.base) if self.adapter is None else self.held


def work(
    job: Job, rows: pa.Table, held_out: pa.Table | None, reporter: Reporter, ranks: Ranks, out: Path
) -> dict[str, Any]:
    """Train and, on the first worker, export into `out`. Answers with the stage's metrics there."""
    import torch

    from graftline.stages.lm.faster import faster

    torch.set_num_threads(job.threads)
    stage = job.stage
    directory = job.model.directory("model")
    prepared = PreparedRows(rows)
    held = None if held_out is None else PreparedRows(held_out)
    batch_size = min(stage.batch_size, len(prepared))
    total = stage.rows_seen(len(prepared))
    plan = IndexPlan(stage.sampler.start(len(prepared), batch_size, stage.seed, total), batch_size, total)
    epoch = -(-len(prepared) // batch_size)
    settings = Settings(
        steps=plan.steps,
        seed=stage.seed,
        bin_tokens=stage.bin_tokens,
        eval_every=epoch if stage.eval_every is None else stage.eval_every,
        epoch=epoch,
        checkpoint_every=stage.checkpoint_every,
        device=job.device,
    )
    attached = build(directory, job.dtype, stage.base, stage.adapter, stage.seed, job.device, job.adapter)
    masters, outcome = train(
        attached, stage.objective, stage.optimizer, plan, prepared, held, settings, reporter, ranks
    )
    if ranks.rank:
        return {}
    probe = held_bins(
        attached, stage.objective, held or PreparedRows(rows.sort_by("id").slice(0, PROBE_ROWS)), settings, Alone()
    )
    evaluated = outcome.values("eval_loss")
    as_trained = evaluated[-1] if evaluated else evaluate(attached.model, stage.objective, probe, settings, Alone())
    folder = out / stage.adapter.makes
    shutil.rmtree(folder, ignore_errors=True)
    with writing(folder):
        about = attached.export(out, masters, directory, job.base)
        digests = _describe(job, folder, directory, about)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes files that are their owner's alone
    metrics = {
        **_metrics(outcome, epoch),
        "trainable_parameters": sum(each.numel() for each in masters.values()),
        "dtype": job.dtype,
        "rows": len(prepared),
    }
    del attached, masters  # so that two models are in memory, never three

    def served(held: str) -> float:
        model: Any = stage.adapter.reopen(folder, directory, job.dtype, held)
        faster(model)
        return evaluate(model.to(job.device), stage.objective.as_served, probe, settings, Alone())

    measured = {"loss_as_trained": as_trained, "loss_as_served": served(job.valid_on)}
    if job.valid_on != "none":  # what a service gives that puts all its adapters on one float base
        measured["loss_on_float_base"] = served("none")
    return {**metrics, **digests, **measured}


def _describe(job: Job, folder: Path, directory: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write the card; answers with the digests."""
    from graftline.stages.lm.load import model_digest

    weights = model_digest(directory)
    base = {"name": job.base, "weights_digest": weights, "held": job.valid_on}
    about["held_in_training"] = job.held
    if job.begun is not None:
        about["went_on_from"] = job.begun.digest
    if job.stage.adapter.makes == "model":
        write_card(folder, base, about)
        return {"weights_digest": model_digest(folder)}
    digest = adapter_digest(folder)
    write_card(folder, base, {**about, "adapter_digest": digest})
    return {"adapter_digest": digest, "weights_digest": weights}


def _metrics(outcome: Outcome, epoch: int) -> dict[str, Any]:
    """What the artefact's manifest keeps of a run."""
    losses, evaluated = outcome.values("loss")[-epoch:], outcome.values("eval_loss")
    metrics = {
        "train_loss": sum(losses) / len(losses),
        "steps": outcome.step,
        "tokens": outcome.tokens,
        "tokens_per_second": outcome.tokens / outcome.seconds if outcome.seconds else 0.0,
    }
    if evaluated:
        metrics |= {"eval_loss": evaluated[-1], "eval_loss_before": evaluated[0]}
    return metrics
