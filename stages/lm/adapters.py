"""LoRA adapters on a model in memory: read from PEFT directories, checked, and applied token by token.

The base's linear layers are wrapped once an adapter reaches them. Which token uses which adapter is said a forward
pass, in the thread that runs it, so that passes of other threads are not touched; a thread that says nothing gets the
base. Without adapters the model is as it was loaded.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from graftline.kernels.grouped_lora import (
    BASE,
    Factors,
    Segment,
    Stack,
    grouped_lora,
    others,
    segment,
    stack,
    stacked_lora,
)
from graftline.stages.errors import AdapterMismatch, FileMissing
from graftline.stages.lm.held import held_of
from graftline.stages.lm.load import refuse_other_base

if TYPE_CHECKING:
    from peft import LoraConfig


class Routing(threading.local):
    """Which token of this thread's forward pass uses which adapter."""

    def __init__(self) -> None:
        self.slots: tuple[int, ...] = ()
        self.segments: dict[int, tuple[Segment, ...]] = {}
        self.not_own: dict[Any, torch.Tensor] = {}

    def use(self, slots: Sequence[int]) -> None:
        """Say it for the passes to come: one slot a token, or one a row where rows are equally long; () = the base."""
        self.slots = () if all(slot == BASE for slot in slots) else tuple(slots)
        self.segments, self.not_own = {}, {}

    def of(self, tokens: int, device: torch.device) -> tuple[Segment, ...]:
        """The segments of a pass over so many tokens."""
        if not self.slots:
            return ()
        if tokens not in self.segments:
            each, rest = divmod(tokens, len(self.slots))
            if rest:
                raise RuntimeError(f"{tokens} tokens pass a layer, but adapters were said for {len(self.slots)}")
            self.segments[tokens] = segment([slot for slot in self.slots for _ in range(each)], device)
        return self.segments[tokens]

    def others(self, tokens: int, stacked: Stack) -> torch.Tensor:
        """What of a stack is not a token's own: the same for all layers whose adapters have these ranks."""
        key = tokens, *stacked.ranks.items()
        if key not in self.not_own:
            slots = [slot for slot in self.slots for _ in range(tokens // len(self.slots))]
            self.not_own[key] = others(slots, stacked.ranks)
        return self.not_own[key]


class GroupedLora(nn.Module):
    """A linear layer, and on top of it every token's own adapter."""

    def __init__(self, linear: nn.Linear, routing: Routing) -> None:
        super().__init__()
        self.linear = linear
        self.routing = routing
        self.factors: dict[int, Factors] = {}
        self._stacked: Stack | None = None

    @property
    def weight(self) -> torch.Tensor:
        return self.linear.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.linear(x)
        segments = self.routing.of(x.shape[:-1].numel(), x.device)
        if not segments:
            return output
        flat, rows = output.view(-1, output.shape[-1]), x.reshape(-1, x.shape[-1])
        used = [each.slot for each in segments if each.slot in self.factors]
        stacked = self._stack(used) if len(used) > 1 and not torch.is_grad_enabled() else None
        if stacked is None:
            grouped_lora(flat, rows, self.factors, segments)
        else:
            stacked_lora(flat, rows, stacked, self.routing.others(len(rows), stacked))
        return output

    def forget(self, slot: int) -> None:
        self.factors.pop(slot, None)
        self._stacked = None

    def _stack(self, used: Sequence[int]) -> Stack | None:
        """These adapters, and where they are not too many all others, as one. A slot is never given twice, so one that
        has them all stays right while adapters come."""
        if self._stacked is None or any(slot not in self._stacked.ranks for slot in used):
            everyone = {slot: own for slot in list(self.factors) if (own := self.factors.get(slot)) is not None}
            self._stacked = stack(everyone) or stack({slot: everyone[slot] for slot in used if slot in everyone})
        stacked = self._stacked
        return stacked if stacked is not None and all(slot in stacked.ranks for slot in used) else None


class AdapterSet:
    """The adapters of one model.

    Args:
        model: the base; its linear layers are wrapped in place.
        digest: of the base's tensors; an adapter recorded for others is refused.
        held: how the base is held; an adapter that belongs on one held otherwise is refused (None: any is taken).
    """

    def __init__(self, model: nn.Module, digest: str, held: str | None = None) -> None:
        self.model, self.digest, self.held = model, digest, held
        self.routing = Routing()
        self.names: dict[str, int] = {}
        self._layers: dict[str, GroupedLora] = {}
        self._users: Counter[int] = Counter()
        self._next = 0
        self._lock = threading.Lock()

    def load(self, name: str, directory: Path) -> None:
        """Read, check and put an adapter in place under a name, instead of one that has it.

        Raises:
            FileMissing: the directory is no PEFT directory.
            AdapterMismatch: it was made for another base, or holds what this layer cannot apply.
        """
        if self.held not in (None, held := held_of(Path(directory))):
            raise AdapterMismatch(
                f"belongs on a base held as {held}, this one is held as {self.held}",
                where=str(directory),
                do="open an engine for it alone",
            )
        factors = read(Path(directory), self.model, self.digest)
        with self._lock:
            slot, self._next = self._next, self._next + 1
            for path, own in factors.items():
                if path not in self._layers:
                    self._wrap(path)
                self._layers[path].factors[slot] = own
            old = self.names.get(name)
            self.names[name] = slot
            self._drop(old)

    def unload(self, name: str) -> None:
        """Forget a name; its factors go with their last user."""
        with self._lock:
            self._drop(self.names.pop(name, None))

    def acquire(self, name: str | None) -> int:
        """The slot of an adapter, kept until it is released as often as it was acquired."""
        if name is None:
            return BASE
        with self._lock:
            if name not in self.names:
                loaded = ", ".join(sorted(self.names)) or "none"
                raise AdapterMismatch(f"no adapter {name!r} is loaded (loaded: {loaded})", do="load it first")
            slot = self.names[name]
            self._users[slot] += 1
            return slot

    def release(self, slot: int) -> None:
        if slot == BASE:
            return
        with self._lock:
            self._users[slot] -= 1
            if slot not in self.names.values():
                self._drop(slot)

    def _drop(self, slot: int | None) -> None:
        if slot is not None and self._users[slot] == 0:
            del self._users[slot]
            for layer in self._layers.values():
                layer.forget(slot)

    def _wrap(self, path: str) -> None:
        parent = self.model.get_submodule(path.rpartition(".")[0])
        linear = self.model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        self._layers[path] = GroupedLora(linear, self.routing)
        setattr(parent, path.rpartition(".")[2], self._layers[path])


def read(directory: Path, model: nn.Module, digest: str) -> dict[str, Factors]:
    """Layer → factors of a PEFT LoRA directory, checked against the base, on its device and in its dtype."""
    where = str(directory)
    config, pairs = _pairs(directory)
    refuse_other_base(directory, digest)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    dtype = next(each.dtype for each in model.parameters() if each.is_floating_point())
    factors = {}
    for path, pair in pairs.items():
        linear = _linear(model, path)
        if linear is None or linear is head:
            raise AdapterMismatch(
                f"changes {path}, {'which is no linear layer here' if linear is None else 'the output head'}",
                where=where,
                do="use the base it was trained on, and target the linear layers of its blocks",
            )
        shape = (linear.out_features, linear.in_features)  # a quantised weight's own is that of its packed bytes
        a, b = pair.get("A"), pair.get("B")
        if a is None or b is None or (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:
            shapes = [tuple(each.shape) for each in (a, b) if each is not None]
            what = f"{path} is {shape} here, its factors are {shapes}"
            raise AdapterMismatch(what, where=where, do="use the base it was trained on")
        a, b = (each.to(linear.weight.device, dtype).contiguous() for each in (a, b))
        factors[path] = Factors(a, b, _scale(config, path, a.shape[0]))
    return factors


def factors_of(directory: Path) -> dict[str, Factors]:
    """Layer → factors of a PEFT LoRA directory, as they are stored, whatever base they are for.

    Raises:
        FileMissing: the directory is no PEFT directory.
        AdapterMismatch: it holds what is not base plus scaled B·A.
    """
    config, pairs = _pairs(directory)
    factors = {}
    for path, pair in pairs.items():
        a, b = pair.get("A"), pair.get("B")
        if a is None or b is None or a.shape[0] != b.shape[1]:
            shapes = [tuple(each.shape) for each in (a, b) if each is not None]
            raise AdapterMismatch(f"the factors of {path} are {shapes}", where=str(directory), do="train it again")
        factors[path] = Factors(a, b, _scale(config, path, a.shape[0]))
    return factors


def _pairs(directory: Path) -> tuple[LoraConfig, dict[str, dict[str, torch.Tensor]]]:
    """A PEFT LoRA directory's config, and layer → its factors `A` and `B`."""
    from peft import LoraConfig, PeftConfig
    from safetensors.torch import load_file

    where = str(directory)
    weights = directory / "adapter_model.safetensors"
    for needed in (directory / "adapter_config.json", weights):
        if not needed.is_file():
            raise FileMissing(f"there is no {needed.name}", where=where, do="name a PEFT adapter directory")
    config = PeftConfig.from_pretrained(where)
    if not isinstance(config, LoraConfig):
        raise AdapterMismatch(f"is a {config.peft_type} adapter; this engine applies LoRA", where=where, do="merge it")
    _refuse_unsupported(config, where)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(weights).items():
        path, found, part = key.removeprefix("base_model.model.").partition(".lora_")
        if not found or part not in ("A.weight", "B.weight"):
            raise AdapterMismatch(f"holds {key}, which is no LoRA factor of a linear layer", where=where, do="merge it")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterMismatch(f"{key} holds numbers that are not finite", where=where, do="train it again")
        pairs.setdefault(path, {})[part[0]] = tensor
    if not pairs:
        raise AdapterMismatch("holds no LoRA factors", where=where, do="train it again")
    return config, pairs


def _linear(model: nn.Module, path: str) -> nn.Linear | None:
    try:
        found = model.get_submodule(path)
    except AttributeError:
        return None
    if isinstance(found, GroupedLora):
        return found.linear
    return found if isinstance(found, nn.Linear) else None


def _scale(config: LoraConfig, path: str, rank: int) -> float:
    from peft.utils.other import get_pattern_key

    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), path), config.lora_alpha)
    return float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)


def _refuse_unsupported(config: LoraConfig, where: str) -> None:
    wrong = [name for name in _UNSUPPORTED if getattr(config, name, None)]
    if config.bias != "none":
        wrong.append("bias")
    if wrong:
        raise AdapterMismatch(
            f"uses {', '.join(wrong)}, which cannot be applied beside other adapters", where=where, do="merge it"
        )


_UNSUPPORTED = (
    "use_dora", "use_qalora", "use_bdlora", "arrow_config", "monteclora_config", "kasa_config", "modules_to_save",
    "trainable_token_indices", "layer_replication", "lora_bias", "fan_in_fan_out", "alora_invocation_tokens",
)  # fmt: skip
"""Settings of PEFT's LoRA whose result is not base plus scaled B·A."""
