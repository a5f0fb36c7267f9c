"""Rows into bins: one bin is one forward pass."""

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
