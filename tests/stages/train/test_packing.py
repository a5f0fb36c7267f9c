from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.train.packing import bins, shares

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@given(LENGTHS, st.integers(1, 100))
def test_every_row_is_in_one_bin_and_no_bin_is_overfull(lengths, capacity):
    packed = bins(lengths, capacity)
    assert sorted(place for each in packed for place in each) == list(range(len(lengths)))
    assert all(len(each) == 1 or sum(lengths[place] for place in each) <= capacity for each in packed)


@given(LENGTHS, st.integers(1, 100))
def test_at_most_one_bin_of_short_rows_is_less_than_half_full(lengths, capacity):
    short = [sum(lengths[place] for place in each) for each in bins(lengths, capacity)]
    assert sum(2 * filled <= capacity for filled in short) <= 1


def test_longest_first_and_equal_lengths_in_order():
    assert bins([3, 9, 3, 5, 5], 10) == [[1], [3, 4], [0, 2]]
    assert bins([], 10) == []


@given(LENGTHS, st.integers(1, 5))
def test_every_row_has_one_worker_and_none_waits_longer_than_for_a_row(lengths, count):
    given = shares(lengths, count)
    assert sorted(place for each in given for place in each) == list(range(len(lengths)))
    tokens = [sum(lengths[place] for place in each) for each in given]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


def test_shares_are_of_tokens_and_of_rows_where_these_are_equal():
    assert shares([40, 10, 10, 20], 2) == [[0], [1, 2, 3]]
    assert shares([7, 7, 7, 7], 2) == [[0, 2], [1, 3]]
    assert shares([0, 0], 2) == [[0], [1]]
    assert shares([5], 3) == [[0], [], []]
