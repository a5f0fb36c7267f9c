"""What a run may spend."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from graftline.stages.errors import InvalidField


@dataclass(frozen=True)
class Budget:
    """What a run may spend before it stops cleanly; run again with a larger one to continue.

    Checked between the ledger's batches and between stages, so one batch of each worker may still be spent.

    Args:
        tokens: of model calls, prompts and answers together.
        money: in the currency of the endpoint's prices; local models cost nothing.
        hours: of wall clock.
    """

    tokens: int | None = None
    money: float | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "money", "hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidField(f"{value} is too small", where=f"Budget.{name}", do="give a number above 0, or None")


@dataclass
class Purse:
    """A budget and what of it is spent so far."""

    budget: Budget
    tokens: int = 0
    money: float = 0.0
    begun: float = field(default_factory=time.time)

    def pay(self, tokens: int = 0, money: float = 0.0) -> None:
        self.tokens += tokens
        self.money += money

    def spent(self) -> str:
        """Which part is spent, in words; empty while none is."""
        budget, hours = self.budget, (time.time() - self.begun) / 3600
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return f"the budget of {budget.tokens} tokens is spent ({self.tokens} used)"
        if budget.money is not None and self.money >= budget.money:
            return f"the budget of {budget.money:g} is spent ({self.money:.2f} used)"
        if budget.hours is not None and hours >= budget.hours:
            return f"the budget of {budget.hours:g} hours is spent"
        return ""
