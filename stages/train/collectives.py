"""One worker among several: the few collectives the loop needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

BUCKET = 1 << 24
"""Numbers summed in one collective: 64 MB of fp32, beside the gradients themselves."""


class Ranks(Protocol):
    """A worker's number, how many there are, and what they do together."""

    rank: int
    size: int

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all workers; the same shapes everywhere."""

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, by rank."""


class Alone:
    """The only worker."""

    rank = 0
    size = 1

    def sum(self, tensors: Sequence[Tensor]) -> None:
        return

    def gather(self, value: Any) -> list[Any]:
        return [value]


class ProcessGroup:
    """A worker of torch's default process group, which Ray Train sets up."""

    def __init__(self) -> None:
        import torch.distributed as distributed

        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        import torch
        import torch.distributed as distributed

        bucket: list[Tensor] = []
        for index, tensor in enumerate(tensors):
            bucket.append(tensor)
            if index + 1 == len(tensors) or sum(each.numel() for each in bucket) >= BUCKET:
                flat = torch.cat([each.reshape(-1) for each in bucket])
                distributed.all_reduce(flat)
                for each, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                    each.copy_(part.view_as(each))
                bucket = []

    def gather(self, value: Any) -> list[Any]:
        import torch.distributed as distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values
