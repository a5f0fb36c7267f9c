from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.stages.train import Shuffled


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9), st.lists(st.integers(0, 40), max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(n, batch_size, seed, asked_before):
    drawn = Shuffled().start(n, batch_size, seed)
    for step in asked_before:
        drawn.next_batch(step)
    for step in (0, 3, 17):
        assert drawn.next_batch(step) == Shuffled().start(n, batch_size, seed).next_batch(step)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 4))
def test_every_epoch_holds_every_row_once(n, batch_size, epochs):
    drawn = Shuffled().start(n, batch_size, 0)
    seen = [place for step in range(-(-n * epochs // batch_size)) for place in drawn.next_batch(step)[0]]
    assert set(Counter(seen[: n * epochs]).values()) == {epochs}
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_orders_differ_between_epochs_and_seeds():
    first = Shuffled().start(50, 50, 0)
    assert first.next_batch(0)[0] != first.next_batch(1)[0]
    assert first.next_batch(0)[0] != Shuffled().start(50, 50, 1).next_batch(0)[0]
    assert first.next_batch(0)[0] != list(range(50))


def test_the_order_is_this_one_everywhere():
    assert Shuffled().start(8, 4, 3).next_batch(1) == ([4, 5, 3, 0], [1.0] * 4)
