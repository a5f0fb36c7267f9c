"""Okapi BM25: which texts of a collection are most like a query. Exact and deterministic; no model."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

K1, B = 1.2, 0.75
"""How fast a repeated word stops counting, and how much a text's length counts."""
WORD = re.compile(r"\w+")


def terms(text: str) -> list[str]:
    """The words that count, of any script, without regard to case."""
    return WORD.findall(text.casefold())


class Bm25:
    """An index of texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._holding: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)  # term → (text, weight)
        counts = [Counter(terms(text)) for text in texts]
        lengths = [count.total() for count in counts]
        mean = sum(lengths) / len(lengths) if any(lengths) else 1.0
        for index, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            for term, times in count.items():
                weight = times * (K1 + 1) / (times + K1 * (1 - B + B * length / mean))
                self._holding[term].append((index, weight))
        self._count = len(counts)

    def search(self, query: str, most: int) -> list[int]:
        """Positions of the texts most like the query, best first, ties by position; none without a word in common."""
        scores: defaultdict[int, float] = defaultdict(float)
        for term in terms(query):
            holding = self._holding.get(term, ())
            rarity = math.log(1 + (self._count - len(holding) + 0.5) / (len(holding) + 0.5))
            for index, weight in holding:
                scores[index] += rarity * weight
        return sorted(scores, key=lambda index: (-scores[index], index))[:most]
