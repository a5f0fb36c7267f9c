from collections import Counter

import pytest

from graftline.stages.train import Shuffled
from graftline.stages.train.source import IndexPlan


@pytest.mark.parametrize(("n", "batch_size", "total"), [(10, 4, 30), (10, 4, 25), (3, 3, 1), (7, 2, 14)])
def test_the_last_batch_ends_where_the_rows_do(n, batch_size, total):
    plan = IndexPlan(Shuffled().start(n, batch_size, 0), batch_size, total)
    batches = [plan.next(step) for step in range(plan.steps)]
    assert sum(len(places) for places, _ in batches) == total
    assert all(len(places) == len(weights) for places, weights in batches)
    assert all(len(places) == batch_size for places, _ in batches[:-1]) and batches[-1][0]
    counts = Counter(place for places, _ in batches for place in places)
    assert max(counts.values()) - min(counts[place] for place in range(n)) <= 1


def test_it_passes_losses_and_state_on():
    class Watching:
        observes = True

        def __init__(self):
            self.seen = {}

        def observe(self, places, losses):
            self.seen.update(zip(places, losses, strict=True))

        def state(self):
            return {"seen": len(self.seen)}

        def load(self, state):
            self.seen = dict.fromkeys(range(state["seen"]))

    watching = Watching()
    plan = IndexPlan(watching, 2, 4)
    plan.observe([0, 1], [0.5, 0.25])
    assert plan.observes and watching.seen == {0: 0.5, 1: 0.25} and plan.state() == {"seen": 2}
    plan.load({"seen": 3})
    assert len(watching.seen) == 3


def test_it_passes_on_what_a_sampler_peeks_at():
    class Peeking:
        def __init__(self):
            self.kept = []

        def peek(self, step):
            return [step] if not self.kept else []

        def keep(self, places, losses):
            self.kept.append((places, losses))

        def numbers(self):
            return {"kept": float(len(self.kept))}

    plan = IndexPlan(Peeking(), 2, 4)
    assert plan.peek(3) == [3]
    plan.keep([3], [0.5])
    assert plan.peek(3) == [] and plan.drawn.kept == [([3], [0.5])] and plan.numbers() == {"kept": 1.0}
