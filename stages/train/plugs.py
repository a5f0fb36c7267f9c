"""The slots of `Train`: what a base, an adapter, an objective, an optimizer and a sampler promise the loop.

A plug is a frozen value. What changes while training lives in the object its `attach`, `bind` or `start` returns, and
is what a checkpoint keeps: tensors by name, or JSON. A new method overrides what it needs; the loop does not change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graftline.stages.expected import turns_of
from graftline.stages.lm.reference import pristine_base
from graftline.stages.rows import Columns
from graftline.stages.specification import Plug
from graftline.stages.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from graftline.stages.lm.reader import Reader

Row = Mapping[str, Any]
"""A prepared row: column → value, token columns as numpy arrays."""


class Base(Plug):
    """Slot: how is a frozen weight held?"""

    @property
    def held(self) -> str:
        """What an adapter's card says of its base: `none` = as it was loaded. `lm.held` rebuilds a base by it."""
        return "none"

    def hold(self, name: str, weight: Tensor) -> nn.Module | None:
        """The module that stands for a frozen linear layer with this weight, in the dtype it is stored in (None: a
        plain one); it computes in the dtype of its input, and the layer's bias is put on it."""
        return None


class Adapter(Plug):
    """Slot: what is trainable, and how does it start?"""

    makes: ClassVar[Literal["adapter", "model"]] = "adapter"
    """What training with it makes: an adapter on the pristine base, or a model of its own."""
    off_is_base: ClassVar[bool] = False
    """Whether the model with the adapter switched off is the pristine base."""
    identity_at_start: ClassVar[bool] = False
    """Whether the model with the adapter, before the first step, computes what the held base alone does."""
    starts_from: ClassVar[Literal["model", "adapter"]] = "model"
    """What `Train.model` is: a model, or an adapter to go on from, whose card says how its base is held. The plug then
    has `go_on`, and neither splits nor attaches."""

    @property
    def upper_layers(self) -> int | None:
        """How many of the model's upper layers hold all that trains, so that what enters them never changes (None: it
        may lie anywhere)."""
        return None

    def split(self, name: str, weight: Tensor) -> tuple[Tensor, Any]:
        """A linear layer's float weight before the base holds it, as the part to hold and what `attach` gets of it."""
        return weight, None

    def attach(self, model: PreTrainedModel, factors: Mapping[str, Any], seed: int) -> Attached:
        """Freeze the model and make its trainable parameters, the same ones for the same seed."""
        raise NotImplementedError(f"{type(self).__name__}.attach")

    def go_on(self, model: PreTrainedModel, begun: Path) -> Attached:
        """`attach` of a plug that starts from an adapter: its directory, on its base, which is held as its card says.
        Nothing is drawn."""
        raise NotImplementedError(f"{type(self).__name__}.go_on")

    def valid_on(self, base: Base) -> str:
        """How the pristine base is held that the export belongs on, where training held it as `base` does."""
        return base.held

    def reopen(self, exported: Path, base: Path, dtype: str, held: str = "none") -> PreTrainedModel:
        """What was exported, on the pristine base, as a server would load it.

        Args:
            exported: the artefact's folder (`adapter/` or `model/`).
            base: the base's Hugging Face directory.
            dtype: `float32` or `bfloat16`.
            held: how the base is held.
        """
        raise NotImplementedError(f"{type(self).__name__}.reopen")


class Attached:
    """An adapter on a model.

    Args:
        model: what the objective calls.
        parameters: name → trainable parameter.
        exact: name → fp32 value that a parameter starts from, where the model's number format has rounded it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, nn.Parameter],
        exact: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.parameters = dict(sorted(parameters.items()))
        self.exact = dict(exact or {})
        self._start: dict[str, Tensor] = {}

    def keep_start(self) -> None:
        """Keep what the parameters start from, which `at_start` goes back to: a second copy of what trains."""
        self._start = {name: each.detach().clone() for name, each in self.parameters.items()}

    @contextlib.contextmanager
    def at_start(self) -> Iterator[None]:
        """The model as it was at `keep_start`."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, other in self._start.items():
            parameter = self.parameters[name]
            self._start[name], parameter.data = parameter.data, other

    def extra_loss(self) -> Tensor | None:
        """A term added to the mean loss, after each forward pass."""
        return None

    def trains(self, step: int, epoch: int) -> Collection[str] | None:
        """Names of the parameters that train at this step (None: always all), the same whoever asks, and whenever; the
        others get no gradient, and the optimizer forgets them. `epoch`: steps of a pass over the rows."""
        return None

    def after_backward(self, step: int, masters: Mapping[str, Tensor]) -> None:
        """The gradients of the whole batch stand in the fp32 masters' `.grad`."""

    def after_step(self, step: int, masters: Mapping[str, Tensor]) -> None:
        """The fp32 masters have moved; what is changed here is what the next step sees."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the masters: masks, budgets."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take a checkpoint's state back."""

    def export(self, out: Path, masters: Mapping[str, Tensor], source: Path, base: str) -> dict[str, Any]:
        """Write the artefact's folder (`adapter/` or `model/`) under `out`, valid on the pristine base.

        Args:
            masters: the fp32 parameters.
            source: the base's Hugging Face directory.
            base: the base's name.

        Returns:
            What `graftline.json` says of it beside base and digest.
        """
        raise NotImplementedError(f"{type(self).__name__}.export")


@dataclass
class Batch:
    """One bin of packed rows as tensors: what one forward pass sees.

    Args:
        rows: the rows' places in the prepared table.
        tensors: what the objective's `loss` needs.
        weight: what the loss's sum is divided by, summed over the whole batch.
        tokens: tokens the model reads.
    """

    rows: tuple[int, ...]
    tensors: dict[str, Tensor]
    weight: float
    tokens: int

    def to(self, device: str) -> Batch:
        return replace(self, tensors={name: each.to(device) for name, each in self.tensors.items()})


@dataclass(frozen=True)
class LossOut:
    """A bin's loss as sum and weight, never as a mean, so that the loop divides once by the whole batch's weight.

    Args:
        loss_sum: scalar, with its graph.
        weight: the bin's weight.
        per_row: each row's own mean loss, in the bin's order, without a graph.
        metrics: sums worth logging, divided by the batch's weight before they are.
    """

    loss_sum: Tensor
    weight: float
    per_row: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LossContext:
    """Where a loss is computed: after so many of all steps, in training or in evaluation."""

    step: int
    steps: int
    training: bool


@dataclass(frozen=True)
class Start:
    """Where training starts: all that an objective's hidden row stages may depend on.

    Args:
        model: the base, or the adapter that training goes on from.
        base: how it is held.
        adapter: what is trainable; `seed`: of its start.
        max_length: tokens a row may have.
        dtype: the number format asked for (`auto`: by a probe).
    """

    model: Stage
    base: Base
    adapter: Adapter
    seed: int
    max_length: int
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    @property
    def pristine(self) -> Stage:
        """The model without any adapter: whose tokenizer reads the rows."""
        return pristine_base(self.model)


class Objective(Plug):
    """Slot: what is the loss of a batch?"""

    needs: ClassVar[Columns] = {"messages": "messages"}
    """Columns of the rows it trains on."""

    def suits(self, adapter: Adapter) -> None:
        """Refuse (`InvalidField`), when a `Train` is built, an adapter with which it cannot work."""

    def prepare(self, rows: Stage, start: Start) -> Stage:
        """The hidden row stages that make what `collate` reads: run once, cached, shared by all trials for which they
        are the same, so a stage should hold no more of `start` than its rows depend on."""
        raise NotImplementedError(f"{type(self).__name__}.prepare")

    def length(self, row: Row) -> int:
        """Tokens a row takes in a bin."""
        return len(row["input_ids"])

    def tokens(self, row: Mapping[str, Any], reader: Reader) -> float:
        """For `plan`: the same, of a row that is not prepared yet."""
        return reader.whole(turns_of(row))

    def collate(self, places: Sequence[int], rows: Sequence[Row], weights: Sequence[float]) -> Batch:
        """One bin: the rows, with their places in the table and the sampler's weights."""
        raise NotImplementedError(f"{type(self).__name__}.collate")

    @property
    def as_served(self) -> Objective:
        """The same loss without anything that was computed beforehand by the model that trains: what is exported is
        measured by it, on the base that training held and on others."""
        return self

    @property
    def recalls(self) -> tuple[str, ...]:
        """Names of the tensors that `recall` makes."""
        return ()

    def recall(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What `loss` wants to know of the model as training found it, which is how it stands here: tensors that join
        the batch's. They are computed in the loss's own bin, with gradients where it has them, so that both are rounded
        alike."""
        raise NotImplementedError(f"{type(self).__name__}.recall")

    def loss(self, model: nn.Module, batch: Batch, context: LossContext) -> LossOut:
        raise NotImplementedError(f"{type(self).__name__}.loss")


class Optimizer(Plug):
    """Slot: how do parameters move?"""

    def suits(self, adapter: Adapter) -> None:
        """Refuse (`InvalidField`), when a `Train` is built, an adapter with which it cannot work."""

    def bind(self, masters: Mapping[str, Tensor], steps: int) -> Bound:
        """Its state for these fp32 parameters and so many steps in all."""
        raise NotImplementedError(f"{type(self).__name__}.bind")


class Bound:
    """An optimizer on parameters."""

    needs_backward: bool = True
    """Whether `step` reads gradients; else the loop computes none, and `step` asks `loss` for values."""

    def before_forward(self, step: int) -> Collection[str] | None:
        """Names of the parameters that train at this step (None: all); the others get no gradient."""
        return None

    def step(self, step: int, loss: Callable[[], float]) -> dict[str, float]:
        """Move the parameters; `loss` is the batch's mean loss as they now stand, with the step's own randomness.
        Answers with numbers worth logging, such as `lr` and `grad_norm`."""
        raise NotImplementedError(f"{type(self).__name__}.step")

    def forget(self, names: Collection[str]) -> None:
        """Drop what is kept of these parameters, which stop training: it would be stale when they train again."""
        raise NotImplementedError(f"{type(self).__name__}.forget")

    def state(self) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__}.state")

    def load(self, state: Mapping[str, Tensor]) -> None:
        raise NotImplementedError(f"{type(self).__name__}.load")

    def state_bytes(self) -> int:
        """Memory its state takes."""
        return sum(each.numel() * each.element_size() for each in self.state().values())


class Sampler(Plug):
    """Slot: which rows, when?"""

    leaves_out: ClassVar[bool] = False
    """Whether it may train on fewer rows than it looks at."""

    def start(self, n: int, batch_size: int, seed: int, total: int) -> Drawn:
        """The order of `n` rows in batches of `batch_size`, where `total` rows are looked at in all."""
        raise NotImplementedError(f"{type(self).__name__}.start")


class Drawn:
    """A sampler at work on rows 0 to n-1; every worker has one, and all of them agree."""

    observes: bool = False
    """Whether it wants to see losses: the loop then gathers them from all workers."""

    def peek(self, step: int) -> list[int]:
        """Places of rows whose losses, as the model stands, it wants to know before it says this step's batch. Asked
        again after each `keep`, until there are none."""
        return []

    def keep(self, places: Sequence[int], losses: Sequence[float]) -> None:
        """Each peeked row's own mean loss, computed without dropout and without gradients."""

    def next_batch(self, step: int) -> tuple[list[int], list[float]]:
        """Places and weights of the batch of this step. None where it has no more: training ends there."""
        raise NotImplementedError(f"{type(self).__name__}.next_batch")

    def observe(self, places: Sequence[int], losses: Sequence[float]) -> None:
        """Each row's own mean loss at the step just made, by place."""

    def numbers(self) -> dict[str, float]:
        """What is worth logging after each step."""
        return {}

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take a checkpoint's state back."""
