"""Rows in the order of a score: the one rule for missing values and ties."""

from __future__ import annotations

from collections.abc import Sequence

from graftline.stages.errors import RunError


def missing(value: object) -> bool:
    """Whether there is no value: null or NaN."""
    return value is None or value != value


def refuse_unscored(scores: Sequence[object], column: str, stage: str) -> None:
    """A choice by a score that no row has would be one by id, and nobody would see it.

    Raises:
        RunError: there are rows, and all scores are missing.
    """
    if scores and all(map(missing, scores)):
        raise RunError(
            f"none of {len(scores)} rows has a value in {column!r}",
            where=stage,
            do="look at the stage that scores them",
        )


def ranked(ids: Sequence[str], scores: Sequence[float | None] | None, largest: bool = True) -> list[int]:
    """Places of the rows from the best to the worst: by score where there are scores, those without one last; equals
    by the smaller id, so that the order depends on no partitioning."""
    sign = -1.0 if largest else 1.0

    def key(place: int) -> tuple[bool, float, str]:
        score = None if scores is None else scores[place]
        if score is None or score != score:
            return True, 0.0, ids[place]
        return False, sign * score, ids[place]

    return sorted(range(len(ids)), key=key)
