"""What a run knows of itself, and all that a resumed one needs: safetensors and JSON, never pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from graftline.stages.errors import StoreFailed
from graftline.stages.train.masters import publish
from graftline.stages.train.plugs import Attached, Bound
from graftline.stages.train.reporting import STATE, TENSORS, Reporter
from graftline.stages.train.source import BatchSource


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
