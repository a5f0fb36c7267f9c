"""The training loop, top to bottom. It names no method: what is trained, on which loss, how it moves and which rows a
step sees, are the plugs' business (`plugs.py`).

A step: the source names the *global* batch, rank k takes every n-th row of it and packs them into bins; the bins'
weights are summed over all ranks; each bin's loss sum is divided by that total and sent backward; gradients are summed
over the ranks; the optimizer moves fp32 masters, which are copied into the model's own number format. Everything random
is seeded by (seed, step, rank), so a run that is killed anywhere and resumed ends with the same bits.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from graftline.stages.errors import RunError, StoreFailed
from graftline.stages.rows import derived_seed
from graftline.stages.train.collectives import Ranks
from graftline.stages.train.packing import bins
from graftline.stages.train.plugs import Attached, Batch, Bound, LossContext, LossOut, Objective, Optimizer
from graftline.stages.train.prepared import PreparedRows
from graftline.stages.train.reporting import STATE, TENSORS, Reporter

CHECKPOINT_SECONDS = 30.0
"""How often a checkpoint is written where no number of steps is asked for."""
SHOWN = 5


class BatchSource(Protocol):
    """Where batches come from."""

    @property
    def observes(self) -> bool:
        """Whether it wants the rows' losses."""

    def peek(self, step: int) -> Sequence[int]:
        """Places of rows whose losses it wants to know before it says this step's batch, until there are none."""

    def keep(self, places: Sequence[int], losses: Sequence[float]) -> None:
        """The losses of the rows it asked for."""

    def next(self, step: int) -> tuple[Sequence[int], Sequence[float]]:
        """Places and weights of the rows of this step's global batch, the same on every worker. None where there are
        no more."""

    def observe(self, places: Sequence[int], losses: Sequence[float]) -> None:
        """The losses of the rows just trained on."""

    def numbers(self) -> Mapping[str, float]:
        """What is worth logging after a step."""

    def published(self, step: int, attached: Attached) -> None:
        """The adapter as it stands after so many steps."""

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint keeps, as JSON."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Take a checkpoint's state back."""


@dataclass(frozen=True)
class Settings:
    """The loop's own numbers.

    Args:
        steps: optimizer steps in all; fewer are made where the source runs out of rows.
        seed: of everything random.
        bin_tokens: tokens of one forward pass; a longer row has one to itself.
        eval_every: steps between two evaluations (0: at the end alone).
        checkpoint_every: steps between two checkpoints (None: by time).
        device: `cpu` or `cuda`.
    """

    steps: int
    seed: int
    bin_tokens: int
    eval_every: int
    checkpoint_every: int | None = None
    device: str = "cpu"


@dataclass
class Outcome:
    """What a run knows of itself; a checkpoint keeps it.

    Args:
        step: steps done.
        tokens: tokens read in training.
        seconds: seconds spent in steps.
        history: (step, numbers), everything logged so far.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """All values of a number, in order."""
        return [numbers[name] for _, numbers in self.history if name in numbers]


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
    model = attached.model
    masters = masters_of(attached)
    bound = optimizer.bind(masters, settings.steps)
    outcome = resume(attached, masters, bound, source, reporter)

    def log(step: int, **numbers: float) -> None:
        outcome.history.append((step, numbers))
        reporter.log(step, **numbers)

    def loss_on_held_out() -> None:
        if held_out is not None and len(held_out):
            log(outcome.step, eval_loss=evaluate(model, objective, held_out, settings, ranks))

    if outcome.step == 0 and not outcome.history:
        loss_on_held_out()
    saved = time.monotonic()
    for step in range(outcome.step, settings.steps):
        started = time.monotonic()
        context = LossContext(step, settings.steps, training=True)
        looked = False
        while candidates := source.peek(step):
            looked = True
            source.keep(candidates, losses_of(model, objective, rows, candidates, settings, context, ranks))
        places, weights = source.next(step)
        if not places:
            if looked:
                log(outcome.step, **source.numbers())
            break
        mine = [*zip(places, weights, strict=True)][ranks.rank :: ranks.size]
        batches = collate(objective, rows, mine, settings)
        wish = settings.checkpoint_every is None and started - saved > CHECKPOINT_SECONDS and ranks.rank == 0

        # The weight of the whole batch is known before any loss is, so that each bin is divided once, by it.
        totals = torch.tensor(
            [sum(each.weight for each in batches), sum(each.tokens for each in batches), wish], dtype=torch.float64
        )
        ranks.sum([totals])
        total, tokens, save_now = totals.tolist()
        if not total > 0:
            raise RunError(f"no token is trained at step {step + 1}", where=_named(rows, places), do="drop such rows")

        trained = set(masters if (names := bound.before_forward(step)) is None else names)
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
        return self.objective.loss(self.attached.model, batch.to(self.settings.device), self.context)

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


def losses_of(
    model: torch.nn.Module,
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
    mine = [(place, 1.0) for place in places][ranks.rank :: ranks.size]
    found: dict[int, float] = {}
    model.eval()
    with torch.no_grad():
        for batch in collate(objective, rows, mine, settings):
            out = objective.loss(model, batch.to(settings.device), replace(context, training=False))
            found.update(zip(batch.rows, out.per_row.tolist(), strict=True))
    every = {place: loss for each in ranks.gather(found) for place, loss in each.items()}
    if bad := [place for place in places if not math.isfinite(every[place])]:
        raise RunError(
            f"the loss is not finite before step {context.step + 1}",
            where=_named(rows, bad),
            do="lower the learning rate, or look at these rows",
        )
    return [every[place] for place in places]


def evaluate(
    model: torch.nn.Module, objective: Objective, rows: PreparedRows, settings: Settings, ranks: Ranks
) -> float:
    """The mean loss over all rows, per unit of weight (a trained token), each rank taking its share."""
    mine = [(place, 1.0) for place in range(len(rows))][ranks.rank :: ranks.size]
    sums = torch.zeros(2, dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for batch in collate(objective, rows, mine, settings):
            out = objective.loss(model, batch.to(settings.device), LossContext(0, settings.steps, False))
            sums += torch.tensor([out.loss_sum.item(), out.weight], dtype=torch.float64)
    ranks.sum([sums])
    return float(sums[0] / sums[1])


# --- fp32 masters ---------------------------------------------------------------------------------------------


def masters_of(attached: Attached) -> dict[str, Tensor]:
    """Name → fp32 parameter: the model's own where it is fp32, else a copy, which alone adds up small updates."""
    return {
        name: parameter
        if parameter.dtype == torch.float32
        else attached.exact.get(name, parameter.detach()).float().clone().requires_grad_(True)
        for name, parameter in attached.parameters.items()
    }


def collect_gradients(attached: Attached, masters: Mapping[str, Tensor]) -> None:
    """Add a bin's gradients to the masters'; where the master is the parameter, autograd has done it."""
    for name, parameter in attached.parameters.items():
        master = masters[name]
        if parameter is not master and parameter.grad is not None:
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None


def average_gradients(masters: Mapping[str, Tensor], trained: set[str], ranks: Ranks) -> None:
    """Sum the gradients over the ranks (each is already divided by the whole batch's weight). A trained parameter that
    no row of this rank reached counts as zero; one that does not train now has none."""
    gradients = []
    for name, master in masters.items():
        if name not in trained:
            master.grad = None
            continue
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        gradients.append(master.grad)
    ranks.sum(gradients)


def publish(attached: Attached, masters: Mapping[str, Tensor]) -> None:
    """Copy the masters into the model, in its number format."""
    with torch.no_grad():
        for name, parameter in attached.parameters.items():
            if parameter is not masters[name]:
                parameter.copy_(masters[name])


# --- checkpoints: safetensors and JSON, never pickle ------------------------------------------------------------


def checkpoint(
    attached: Attached, masters: Mapping[str, Tensor], bound: Bound, source: BatchSource, outcome: Outcome
) -> Callable[[Path], None]:
    """A function that writes all a resumed run needs into a folder."""

    def write(folder: Path) -> None:
        tensors = {f"parameter/{name}": each for name, each in masters.items()}
        tensors |= {f"adapter/{name}": each for name, each in attached.state().items()}
        tensors |= {f"optimizer/{name}": each for name, each in bound.state().items()}
        plain = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
        save_file(plain, folder / TENSORS)
        state = {
            "step": outcome.step,
            "tokens": outcome.tokens,
            "seconds": outcome.seconds,
            "history": outcome.history,
            "source": dict(source.state()),
        }
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

    return write


def resume(
    attached: Attached, masters: Mapping[str, Tensor], bound: Bound, source: BatchSource, reporter: Reporter
) -> Outcome:
    """Take the latest checkpoint's state back, if there is one."""
    with reporter.latest() as folder:
        if folder is None:
            return Outcome()
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            tensors = load_file(folder / TENSORS)
        except (OSError, ValueError, SafetensorError) as error:
            raise StoreFailed(f"cannot read the checkpoint: {error}", where=str(folder), do="delete it") from error
    parts: dict[str, dict[str, Tensor]] = {"parameter": {}, "adapter": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        parts[kind][name] = tensor
    with torch.no_grad():
        for name, master in masters.items():
            master.copy_(parts["parameter"][name])
    publish(attached, masters)
    attached.load(parts["adapter"])
    bound.load(parts["optimizer"])
    source.load(state["source"])
    history = [(int(step), dict(numbers)) for step, numbers in state["history"]]
    return Outcome(state["step"], state["tokens"], state["seconds"], history)


def _named(rows: PreparedRows, places: Sequence[int]) -> str:
    shown = ", ".join(rows.ids[place] for place in places[:SHOWN])
    return f"rows {shown}{f' and {len(places) - SHOWN} more' if len(places) > SHOWN else ''}"
