"""Shares of categories are hit to within one, and add up."""

from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.generate.expansion import apportioned

shares = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 10), min_size=1)


@given(st.integers(0, 200), shares)
def test_every_share_is_hit_to_within_one(count, given_):
    found, total = apportioned(count, given_), sum(given_.values())
    assert sum(found.values()) == count
    assert all(abs(found[name] - count * share / total) < 1 + 1e-9 for name, share in given_.items())


def test_ties_go_by_name_and_nothing_to_what_has_no_share():
    assert apportioned(3, {"b": 1.0, "a": 1.0, "c": 0.0}) == {"a": 2, "b": 1}
