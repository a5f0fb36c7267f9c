"""Every row is accounted for: carried + created = kept + filtered + failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graftline.stages.errors import NothingKept, RunError, TooManyFailed

MOST_REASONS = 50
LONGEST_REASON = 200


@dataclass
class Account:
    """What became of a stage's rows; `carried` are input rows passed on, `created` new ones."""

    given: int = 0
    carried: int = 0
    created: int = 0
    kept: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, other: Account) -> None:
        for name in ("given", "carried", "created", "kept"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.filtered.update(other.filtered)
        self.failed.update(other.failed)

    def check(self, stage: str, max_failed: float) -> None:
        """Refuses an account that does not add up, with too many failures, or without a row kept.

        Raises:
            RunError, TooManyFailed, NothingKept
        """
        came, went = self.carried + self.created, self.kept + self.filtered.total() + self.failed.total()
        if came != went:
            raise RunError(
                f"its account does not add up: {self.carried} carried + {self.created} created, but {self.kept} kept +"
                f" {self.filtered.total()} filtered + {self.failed.total()} failed",
                where=stage,
                do="report this: a row was lost or made twice",
            )
        failed = self.failed.total()
        if failed > max_failed * came:
            raise TooManyFailed(
                f"{failed} of {came} rows failed, more than max_failed={max_failed:g} allows; {_most(self.failed)}",
                where=stage,
                do="look at them with `graftline inspect`, mend the input, or raise max_failed",
            )
        if not self.kept:
            dropped = self.filtered + self.failed
            raise NothingKept(
                f"kept none of {came} rows{f'; {_most(dropped)}' if dropped else ''}",
                where=stage,
                do="check its input and its limits",
            )

    def to_dict(self, whole: bool = False) -> dict[str, Any]:
        """As in the manifest: at most 50 reasons of 200 characters each; `whole`: all of them."""
        return {
            "in": self.given,
            "carried": self.carried,
            "created": self.created,
            "kept": self.kept,
            "filtered": dict(self.filtered) if whole else _reasons(self.filtered),
            "failed": dict(self.failed) if whole else _reasons(self.failed),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Account:
        return cls(
            value["in"],
            value["carried"],
            value["created"],
            value["kept"],
            Counter(value["filtered"]),
            Counter(value["failed"]),
        )


def _reasons(counted: Counter[str]) -> dict[str, int]:
    shortened: Counter[str] = Counter()
    for reason, count in counted.items():
        shortened[reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"] += count
    first = sorted(shortened.items(), key=lambda item: (-item[1], item[0]))
    found = dict(sorted(first[:MOST_REASONS]))
    if len(first) > MOST_REASONS:
        found["other reasons"] = found.get("other reasons", 0) + sum(count for _, count in first[MOST_REASONS:])
    return found


def _most(counted: Counter[str]) -> str:
    ((reason, count), *_) = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return f"most often ({count}): {reason[:LONGEST_REASON]}"
