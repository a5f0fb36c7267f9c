"""What answers cost, by their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from graftline.stages.specification import Plug

if TYPE_CHECKING:
    import numpy as np

PRICED = 1e6
"""Tokens that a price is for."""


class Price(Plug):
    """What a million of a target's tokens cost, in one currency for all targets (seconds on one's own machine will do).

    Args:
        input: of the prompt's tokens.
        output: of the answer's.
    """

    origin = "a line of a price list, no method"

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


def counted(text: str) -> int:
    """Tokens of a text, about: four bytes each. The targets' tokenizers differ, and a router has none of them."""
    return len(text.encode("utf-8", "surrogatepass")) // 4 + 1


def money(price_in: np.ndarray, price_out: np.ndarray, tokens_in: np.ndarray, tokens_out: np.ndarray) -> np.ndarray:
    """[prompts, targets]: what the answers cost.

    Args:
        price_in, price_out: [targets], of a million tokens.
        tokens_in: [prompts].
        tokens_out: [prompts, targets].
    """
    cost: np.ndarray = (tokens_in[:, None] * price_in + tokens_out * price_out) / PRICED
    return cost
