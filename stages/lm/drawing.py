"""Drawing tokens so that an answer depends on its own prompt and seed alone, not on who shares the batch.

A token is drawn with one number, hashed from the request's seed and the token's position, at which the cumulative
distribution (in the vocabulary's order) is cut: a rounding difference moves the cut's neighbourhood only. A `Turn` is
one answer in the making; engines ask it what must happen next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from graftline.stages.lm.engine import Finish

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graftline.stages.lm.engine import Sampling

NUCLEUS = 256
"""Tokens looked at first for a nucleus: sorting 49,152 logits takes ten times as long as finding the 256 largest."""


class Turn:
    """One answer in the making: what was asked, and the tokens so far.

    Args:
        prompt: number of tokens of the prompt.
        limit: tokens the answer may have.
        ends: ids of the end-of-turn tokens.
    """

    def __init__(
        self, sampling: Sampling, prompt: int, limit: int, ends: Sequence[int], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.sampling, self.prompt, self.limit, self.ends, self.tokenizer = sampling, prompt, limit, ends, tokenizer
        # Every token stands for a byte at least, so a stop text lies within so many of the last tokens.
        self.reach = max((len(stop.encode()) for stop in sampling.stop), default=0) + 4

    def stopped(self, tokens: Sequence[int]) -> bool:
        """Whether a stop text has just been completed."""
        if not self.sampling.stop or not tokens:
            return False
        tail = self.text(tokens[-self.reach :])
        return any(stop in tail for stop in self.sampling.stop)

    def uniform(self, position: int) -> float:
        """The number in [0, 1) that draws the token at a position (of the prompt and the answer together)."""
        drawn = hashlib.blake2b(f"{self.sampling.seed}:{position}".encode(), digest_size=8).digest()
        return int.from_bytes(drawn, "big") / 2**64

    def finish(self, tokens: Sequence[int]) -> tuple[str, Finish, int]:
        """The text of a finished answer, why it ended, and how many tokens it took."""
        ended = bool(tokens) and tokens[-1] in self.ends
        count = len(tokens)
        text = self.text(tokens)
        cut = first_stop(text, self.sampling.stop)
        if cut is not None:
            while count > 1 and first_stop(self.text(tokens[: count - 1]), self.sampling.stop) is not None:
                count -= 1
            return text[:cut], "stop", count
        return text, "stop" if ended else "length", count

    def shown(self, tokens: Sequence[int]) -> str:
        """What of an unfinished answer will surely stay: no half character, nothing that may be a stop text."""
        text = self.text(tokens).rstrip("\ufffd")
        cut = first_stop(text, self.sampling.stop)
        return text[: len(text) - held_back(text, self.sampling.stop) if cut is None else cut]

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        decoded = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop text begins."""
    found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return min(found, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop text."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def decide(scores: torch.Tensor, turns: Sequence[Turn | None], answers: Sequence[Sequence[int]]) -> torch.Tensor:
    """Make the arg-max of the scores the token each answer gets next, in place.

    Args:
        scores: [rows, vocabulary], at least one row a turn, fp32.
        turns: one a row; None = nobody waits for it.
        answers: the tokens each answer has so far.
    """
    rows, temperatures, top_ps, uniform = [], [], [], []
    for row, (turn, tokens) in enumerate(zip(turns, answers, strict=True)):
        if turn is None:
            continue
        if turn.stopped(tokens):
            scores[row, turn.ends[0]] = torch.inf
            continue
        if turn.sampling.presence and tokens:
            # As a tensor: torch takes twice as long to index with a list.
            seen = torch.tensor(list(set(tokens)), device=scores.device)
            scores[row, seen] -= turn.sampling.presence
        if turn.sampling.temperature > 0:
            rows.append(row)
            temperatures.append(turn.sampling.temperature)
            top_ps.append(turn.sampling.top_p)
            uniform.append(turn.uniform(turn.prompt + len(tokens)))
    if rows:
        scores[rows, draw(scores[rows], temperatures, top_ps, uniform)] = torch.inf
    return scores


def draw(
    logits: torch.Tensor, temperatures: Sequence[float], top_ps: Sequence[float], uniform: Sequence[float]
) -> torch.Tensor:
    """One token a row.

    Args:
        logits: [rows, vocabulary], fp32.
        temperatures: above 0; `top_ps`: above 0, up to 1; `uniform`: in [0, 1).
    """

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(1)

    probabilities = torch.softmax(logits / column(temperatures).to(logits.dtype), dim=-1)
    for row, top_p in enumerate(top_ps):
        if top_p < 1:
            keep_nucleus(probabilities[row], top_p)
    sums = probabilities.double().cumsum(dim=-1)
    # The first token whose sum lies above the cut: one with a probability above zero, since the cut is below the total.
    return torch.searchsorted(sums, column(uniform) * sums[:, -1:], right=True).squeeze(1)


def keep_nucleus(probabilities: torch.Tensor, top_p: float) -> None:
    """Set to zero, in place, what does not belong to the likeliest tokens that hold `top_p` together."""
    for count in (NUCLEUS, len(probabilities)):
        largest = probabilities.topk(min(count, len(probabilities))).values
        reached = largest.cumsum(0) >= top_p
        if bool(reached.any()):
            smallest = largest[int(reached.int().argmax())]
            probabilities[probabilities < smallest] = 0
            return
