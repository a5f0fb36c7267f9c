"""Names that are joined have one root, the smallest, whatever the order of the joins."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.select.clusters import UnionFind

pairs = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=10)


@given(pairs, st.randoms(use_true_random=False))
def test_roots_are_those_of_a_search_and_ignore_the_order(joins: list[tuple[str, str]], random: Any) -> None:
    found = UnionFind()
    for one, other in random.sample(joins, len(joins)):
        found.join(one, other)
    for name in "abcdefgh":
        reached = {name}
        for _ in "abcdefgh":
            reached |= {each for pair in joins if reached & set(pair) for each in pair}
        assert found.root(name) == min(reached)
