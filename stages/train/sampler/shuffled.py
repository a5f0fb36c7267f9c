"""Every row once an epoch, in an order of the epoch's own."""

from __future__ import annotations

from graftline.stages.train.plugs import Drawn, Sampler


class Shuffled(Sampler):
    """Epoch after epoch of all rows, each in its own random order. Batches run on over the end of an epoch, so none is
    short and no row is dropped.

    Property tested: a batch depends on seed and step alone, whatever was asked before; k epochs hold each row k times.
    """

    method = "sampler.shuffled"
    origin = "random reshuffling, as in every stochastic gradient method"

    def start(self, n: int, batch_size: int, seed: int, total: int = 0) -> Permuted:
        return Permuted(n, batch_size, seed)


class Permuted(Drawn):
    """The stream of all epochs' permutations, cut into batches."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._epochs: dict[int, list[int]] = {}

    def next_batch(self, step: int) -> tuple[list[int], list[float]]:
        first = step * self.batch_size
        places = [self._epoch(at // self.n)[at % self.n] for at in range(first, first + self.batch_size)]
        return places, [1.0] * len(places)

    def _epoch(self, epoch: int) -> list[int]:
        if epoch not in self._epochs:
            import numpy as np

            order: list[int] = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.n).tolist()
            # A batch may reach into the next epoch, or over several short ones, so the last few are kept.
            self._epochs = {known: self._epochs[known] for known in self._epochs if known > epoch - 2} | {epoch: order}
        return self._epochs[epoch]
