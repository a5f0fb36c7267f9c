"""The training loop, top to bottom. It names no method: what is trained, on which loss, how it moves and which rows a
step sees, are the plugs' business (`plugs.py`).

A step: the source names the *global* batch, each rank takes its share of the tokens and packs the rows into bins; the
bins' weights are summed over all ranks; each bin's loss sum is divided by that total and sent backward; gradients are
summed over the ranks; the optimizer moves fp32 masters, which are copied into the model's own number format. Everything
random is seeded by (seed, step, rank), so a run that is killed anywhere and resumed ends with the same bits.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from graftline.stages.errors import RunError
from graftline.stages.rows import derived_seed
from graftline.stages.train.checkpoint import Outcome, checkpoint, resume
from graftline.stages.train.collectives import Ranks
from graftline.stages.train.masters import average_gradients, collect_gradients, masters_of, publish
from graftline.stages.train.packing import bins, shares
from graftline.stages.train.plugs import Attached, Batch, Bound, LossContext, LossOut, Objective, Optimizer
from graftline.stages.train.prepared import PreparedRows
from graftline.stages.train.reporting import Reporter
from graftline.stages.train.source import BatchSource

CHECKPOINT_SECONDS = 30.0
"""How often a checkpoint is written where no number of steps is asked for."""
SHOWN = 5


@dataclass(frozen=True)
class Settings:
    """The loop's own numbers.

    Args:
        steps: optimizer steps in all; fewer are made where the source runs out of rows.
        seed: of everything random.
        bin_tokens: tokens of one forward pass; a longer row has one to itself.
        eval_every: steps between two evaluations (0: at the end alone).
        epoch: steps of a pass over the rows.
        checkpoint_every: steps between two checkpoints (None: by time).
        device: `cpu` or `cuda`.
    """

    steps: int
    seed: int
    bin_tokens: int
    eval_every: int
    epoch: int = 1
    checkpoint_every: int | None = None
    device: str = "cpu"


def train(
    attached: Attached,
    objective: Objective,
    optimizer: Optimizer,
    source: BatchSource,
    rows: PreparedRows,
    held_out: PreparedRows | None,
    settings: Settings,
    reporter: Reporter,
    ranks: Ranks,
) -> tuple[dict[str, Tensor], Outcome]:
    """Train, or continue from the reporter's latest checkpoint.

    Returns:
        The fp32 parameters by name, and what the run knows of itself.

    Raises:
        RunError: a loss or gradient is not finite; the message names step and rows.
    """
    if objective.recalls:
        attached.keep_start()
    masters = masters_of(attached)
    bound = optimizer.bind(masters, settings.steps)
    outcome = resume(attached, masters, bound, source, reporter)

    def log(step: int, **numbers: float) -> None:
        outcome.history.append((step, numbers))
        reporter.log(step, **numbers)

    shown = (
        held_bins(attached, objective, held_out, settings, ranks) if held_out is not None and len(held_out) else None
    )

    def loss_on_held_out() -> None:
        if shown is not None:
            log(outcome.step, eval_loss=evaluate(attached.model, objective, shown, settings, ranks))

    if outcome.step == 0 and not outcome.history:
        loss_on_held_out()
    saved = time.monotonic()
    for step in range(outcome.step, settings.steps):
        started = time.monotonic()
        context = LossContext(step, settings.steps, training=True)
        looked = False
        while candidates := source.peek(step):
            looked = True
            source.keep(candidates, losses_of(attached, objective, rows, candidates, settings, context, ranks))
        places, weights = source.next(step)
        if not places:
            if looked:
                log(outcome.step, **source.numbers())
            break
        batches = collate(objective, rows, share(objective, rows, places, weights, ranks), settings)
        wish = settings.checkpoint_every is None and started - saved > CHECKPOINT_SECONDS and ranks.rank == 0

        # The weight of the whole batch is known before any loss is, so that each bin is divided once, by it.
        totals = torch.tensor(
            [sum(each.weight for each in batches), sum(each.tokens for each in batches), wish], dtype=torch.float64
        )
        ranks.sum([totals])
        total, tokens, save_now = totals.tolist()
        if not total > 0:
            raise RunError(f"no token is trained at step {step + 1}", where=_named(rows, places), do="drop such rows")

        trained = trained_at(step, attached, masters, bound, settings)
        for name, parameter in attached.parameters.items():
            parameter.requires_grad_(name in trained)
        one = Step(attached, objective, masters, batches, total, context, settings, ranks)
        if bound.needs_backward:
            loss, metrics = one.backward(rows, places)
            average_gradients(masters, trained, ranks)
            attached.after_backward(step, masters)
        else:
            loss, metrics = one.forward(), {}
        moved = bound.step(step, one.forward)
        if not all(math.isfinite(each) for each in (loss, *moved.values())):
            raise RunError(
                f"the loss or its gradient is not finite at step {step + 1}: {loss=}, {moved}",
                where=_named(rows, places),
                do="lower the learning rate, or look at these rows",
            )
        attached.after_step(step, masters)
        publish(attached, masters)
        if source.observes:
            source.observe(*one.observed())
        outcome.step = step + 1
        source.published(outcome.step, attached)

        seconds = time.monotonic() - started
        outcome.tokens += int(tokens)
        outcome.seconds += seconds
        log(outcome.step, loss=loss, **moved, **metrics, **source.numbers(), tokens_per_second=tokens / seconds)
        reporter.progress(outcome.step, settings.steps, loss=loss, tokens_per_second=tokens / seconds)
        last = outcome.step == settings.steps
        if last or (settings.eval_every and outcome.step % settings.eval_every == 0):
            loss_on_held_out()
        if last or save_now or (settings.checkpoint_every and outcome.step % settings.checkpoint_every == 0):
            reporter.save(outcome.step, checkpoint(attached, masters, bound, source, outcome))
            saved = time.monotonic()
    if outcome.step < settings.steps:  # the source ran out of rows
        if not any(step == outcome.step and "eval_loss" in numbers for step, numbers in outcome.history):
            loss_on_held_out()
        reporter.save(outcome.step, checkpoint(attached, masters, bound, source, outcome))
    return masters, outcome


def trained_at(
    step: int, attached: Attached, masters: Mapping[str, Tensor], bound: Bound, settings: Settings
) -> set[str]:
    """Names of the parameters that train at this step; of those that the adapter lets rest from now on, the optimizer
    keeps nothing."""
    trained = set(masters if (names := bound.before_forward(step)) is None else names)
    chosen = attached.trains(step, settings.epoch)
    if chosen is None:
        return trained
    before = attached.trains(step - 1, settings.epoch) if step else None
    if stopped := set(before or ()).difference(chosen):
        bound.forget(stopped)
    return trained.intersection(chosen)


# --- one step -------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One batch of this rank, at one step."""

    attached: Attached
    objective: Objective
    masters: Mapping[str, Tensor]
    batches: Sequence[Batch]
    total: float
    context: LossContext
    settings: Settings
    ranks: Ranks
    losses: dict[int, float] = field(default_factory=dict)

    def backward(self, rows: PreparedRows, places: Sequence[int]) -> tuple[float, dict[str, float]]:
        """Gradients of the batch's mean loss, added up in the fp32 masters. Answers with that loss and the metrics."""
        for master in self.masters.values():
            master.grad = None
        sums: dict[str, float] = {}
        with self._randomness():
            for batch in self.batches:
                out = self._loss(batch)
                mean = out.loss_sum / self.total
                extra = self.attached.extra_loss()
                if extra is not None:
                    mean = mean + extra * (batch.weight / self.total)
                mean.backward()
                collect_gradients(self.attached, self.masters)
                self._note(batch, out)
                for name, value in {"loss": out.loss_sum.item(), **out.metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        every = self.ranks.gather(sums)
        names = sorted({name for each in every for name in each} | {"loss"})
        means = {name: sum(each.get(name, 0.0) for each in every) / self.total for name in names}
        loss = means.pop("loss")
        if not math.isfinite(loss):
            self._refuse(loss, rows, places)
        return loss, means

    def forward(self) -> float:
        """The batch's mean loss with the masters as they now stand, under the step's own randomness."""
        publish(self.attached, self.masters)
        total = torch.zeros(1, dtype=torch.float64)
        with torch.no_grad(), self._randomness():
            for batch in self.batches:
                out = self._loss(batch)
                total += out.loss_sum.item()
                self._note(batch, out)
        self.ranks.sum([total])
        return float(total) / self.total

    def observed(self) -> tuple[list[int], list[float]]:
        """Places and losses of the whole batch's rows, the same on every rank."""
        merged = {place: loss for each in self.ranks.gather(self.losses) for place, loss in each.items()}
        places = sorted(merged)
        return places, [merged[place] for place in places]

    def _loss(self, batch: Batch) -> LossOut:
        batch = recalled(self.attached, self.objective, batch, self.settings)
        return self.objective.loss(self.attached.model, batch, self.context)

    def _note(self, batch: Batch, out: LossOut) -> None:
        for place, loss in zip(batch.rows, out.per_row.tolist(), strict=True):
            self.losses.setdefault(place, loss)  # the loss before the step, where an optimizer asks more than once

    def _randomness(self) -> AbstractContextManager[None]:
        return seeded(self.attached.model, self.settings, self.context.step, self.ranks.rank)

    def _refuse(self, loss: float, rows: PreparedRows, places: Sequence[int]) -> None:
        bad = [place for place, each in zip(*self.observed(), strict=True) if not math.isfinite(each)]
        raise RunError(
            f"the loss is {loss} at step {self.context.step + 1}",
            where=_named(rows, bad or places),
            do="lower the learning rate, or look at these rows",
        )


@contextlib.contextmanager
def seeded(model: torch.nn.Module, settings: Settings, step: int, rank: int) -> Iterator[None]:
    """Training mode, with the randomness of this step and rank alone; the process's own generator is put back."""
    devices = [torch.cuda.current_device()] if settings.device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(settings.seed, f"step {step}", rank))
        model.train()
        try:
            yield
        finally:
            model.eval()


def share(
    objective: Objective, rows: PreparedRows, places: Sequence[int], weights: Sequence[float], ranks: Ranks
) -> list[tuple[int, float]]:
    """This rank's rows (place, weight) of those that all ranks share."""
    each = [*zip(places, weights, strict=True)]
    if ranks.size == 1:
        return each
    lengths = [objective.length(rows[place]) for place in places]
    return [each[index] for index in shares(lengths, ranks.size)[ranks.rank]]


def collate(
    objective: Objective, rows: PreparedRows, chosen: Sequence[tuple[int, float]], settings: Settings
) -> list[Batch]:
    """The rows (place, weight) packed into bins."""
    read = [rows[place] for place, _ in chosen]
    packed = bins([objective.length(row) for row in read], settings.bin_tokens)
    return [
        objective.collate(
            [chosen[index][0] for index in each], [read[index] for index in each], [chosen[index][1] for index in each]
        )
        for each in packed
    ]


def recalled(attached: Attached, objective: Objective, batch: Batch, settings: Settings) -> Batch:
    """The batch on the device, and in it, from the first time on, what its objective recalls."""
    here = batch.to(settings.device)
    if not batch.tensors.keys() >= set(objective.recalls):
        with attached.at_start():
            found = objective.recall(attached.model, here)
        here.tensors.update(found)
        batch.tensors.update(found)
    return here


def losses_of(
    attached: Attached,
    objective: Objective,
    rows: PreparedRows,
    places: Sequence[int],
    settings: Settings,
    context: LossContext,
    ranks: Ranks,
) -> list[float]:
    """Each row's own mean loss as the model stands, without dropout and gradients, each rank taking its share.

    Raises:
        RunError: one is not finite, which no threshold would tell from an easy row.
    """
    mine = share(objective, rows, places, [1.0] * len(places), ranks)
    found: dict[int, float] = {}
    attached.model.eval()
    with torch.no_grad():
        for batch in collate(objective, rows, mine, settings):
            ready = recalled(attached, objective, batch, settings)
            out = objective.loss(attached.model, ready, replace(context, training=False))
            found.update(zip(batch.rows, out.per_row.tolist(), strict=True))
    every = {place: loss for each in ranks.gather(found) for place, loss in each.items()}
    if bad := [place for place in places if not math.isfinite(every[place])]:
        raise RunError(
            f"the loss is not finite before step {context.step + 1}",
            where=_named(rows, bad),
            do="lower the learning rate, or look at these rows",
        )
    return [every[place] for place in places]


def held_bins(
    attached: Attached, objective: Objective, rows: PreparedRows, settings: Settings, ranks: Ranks
) -> list[Batch]:
    """This rank's share of all rows in bins, ready for `evaluate`, by whatever model."""
    mine = share(objective, rows, range(len(rows)), [1.0] * len(rows), ranks)
    batches = collate(objective, rows, mine, settings)
    attached.model.eval()
    with torch.no_grad():
        for batch in batches:
            recalled(attached, objective, batch, settings)
    return batches


def evaluate(
    model: torch.nn.Module, objective: Objective, batches: Sequence[Batch], settings: Settings, ranks: Ranks
) -> float:
    """The mean loss over all ranks' bins, per unit of weight (a trained token)."""
    sums = torch.zeros(2, dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            out = objective.loss(model, batch.to(settings.device), LossContext(0, settings.steps, False))
            sums += torch.tensor([out.loss_sum.item(), out.weight], dtype=torch.float64)
    ranks.sum([sums])
    return float(sums[0] / sums[1])


def _named(rows: PreparedRows, places: Sequence[int]) -> str:
    shown = ", ".join(rows.ids[place] for place in places[:SHOWN])
    return f"rows {shown}{f' and {len(places) - SHOWN} more' if len(places) > SHOWN else ''}"
