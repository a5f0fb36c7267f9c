"""Things that belong together, directly or through others: union-find."""

from __future__ import annotations


class UnionFind:
    """Names, and which of them are joined. What comes out does not depend on the order of the joins."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, name: str) -> str:
        """The smallest of all names this one is joined with (itself, where it is joined with none)."""
        above = self._above
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    def join(self, one: str, other: str) -> None:
        """Let two names, and all they are joined with, belong together."""
        low, high = sorted((self.root(one), self.root(other)))
        self._above[high] = low
