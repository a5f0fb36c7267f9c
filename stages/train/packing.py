"""Rows into shares, one a worker, and into bins: one bin is one forward pass."""

from __future__ import annotations

from collections.abc import Sequence


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First fit, longest first: places of the rows in each bin, none above `capacity` tokens save a row that is longer
    by itself. Equal lengths keep their order, so the same lengths always give the same bins."""
    filled: list[int] = []
    packed: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = lengths[place]
        into = next((index for index, used in enumerate(filled) if used + length <= capacity), len(filled))
        if into == len(filled):
            filled.append(0)
            packed.append([])
        filled[into] += length
        packed[into].append(place)
    return packed


def shares(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Places of the rows of each of so many workers: longest first, each to whoever has fewest tokens, since all wait
    for the last. Of equals the first; within a share in order."""
    tokens = [0] * count
    given: list[list[int]] = [[] for _ in range(count)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        worker = min(range(count), key=lambda each: (tokens[each], len(given[each])))
        tokens[worker] += lengths[place]
        given[worker].append(place)
    return [sorted(each) for each in given]
