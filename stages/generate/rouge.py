"""ROUGE-L between a text and a growing pool of texts: exact, but only where the words in common allow a better value.

ROUGE-L F is 2PR/(P+R) with P = LCS/|a| and R = LCS/|b|, that is 2·LCS/(|a|+|b|), on lower-cased `[a-z0-9]+` words
without stemming. The longest common subsequence (LCS) is never longer than the words in common, counted with
repetition, so the pool is looked at in the order of that bound, and no further than it can help.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """The words ROUGE-L counts."""
    return WORD.findall(text.lower())


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L F of two lists of words, 0 to 1."""
    return _score(_lcs(_places(first), len(first), second), len(first) + len(second))


class Pool:
    """Texts, and which of them is most like another."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._texts: list[list[str]] = []
        self._holding: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # word → (text, times)

    def add(self, identity: str, text: Sequence[str]) -> None:
        """Add a text, as words."""
        for word, times in Counter(text).items():
            self._holding[word].append((len(self._texts), times))
        self._ids.append(identity)
        self._texts.append(list(text))

    def nearest(self, text: Sequence[str]) -> tuple[float, str | None]:
        """The largest ROUGE-L F to any text of the pool, and that text's id (the smallest of equals; None at 0)."""
        common: Counter[int] = Counter()
        for word, times in Counter(text).items():
            for index, others in self._holding.get(word, ()):
                common[index] += min(times, others)
        bounds = sorted(
            ((_score(shared, len(text) + len(self._texts[index])), index) for index, shared in common.items()),
            reverse=True,
        )
        places, best, nearest = _places(text), 0.0, None
        for bound, index in bounds:
            if bound < best:
                break
            other = self._texts[index]
            score = _score(_lcs(places, len(text), other), len(text) + len(other))
            if score > best or (nearest is not None and score == best and self._ids[index] < nearest):
                best, nearest = score, self._ids[index]
        return best, nearest


def _score(common: int, length: int) -> float:
    return 2 * common / length if length else 0.0


def _places(text: Sequence[str]) -> dict[str, int]:
    """Word → the positions where it stands, as bits."""
    found: dict[str, int] = {}
    for position, word in enumerate(text):
        found[word] = found.get(word, 0) | 1 << position
    return found


def _lcs(places: dict[str, int], length: int, other: Sequence[str]) -> int:
    """Length of the longest common subsequence: a column of the usual table as the bits of one number, in which a
    zero stands where the column grows."""
    full = (1 << length) - 1
    column = full
    for word in other:
        matches = column & places.get(word, 0)
        column = ((column + matches) | (column - matches)) & full
    return length - column.bit_count()
