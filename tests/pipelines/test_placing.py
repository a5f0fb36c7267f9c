import math

import pytest

from graftline.pipelines.placing import Capacity, Needs, Node, fits, needs_of, refuse_unplaceable, this_machine
from graftline.stages import Model, Resources, Rounds, Rows, Scorer, Source, Stage
from graftline.stages.errors import CannotPlace

TWO = [Node(2, driver=True)]
THREE = [Node(1, driver=True), Node(8, 1), Node(4)]


class Read(Source):
    on_driver_node = True


class Plain(Source):
    """A source."""


class Teacher(Stage):
    makes = "model"


class Talk(Rounds):
    seeds: Rows


class Judge(Scorer):
    adds = {"x": "int64"}
    calls_model = True
    model: Model


class Train(Stage):
    makes = "adapter"
    whole_node = True
    workers: int = 0

    def footprint(self):
        if not self.workers:
            return super().footprint()
        return (Resources(cpus=0.0), *[Resources(cpus=1.0)] * self.workers)


def cpus(stage, nodes=TWO):
    return [each.cpus for each in needs_of(stage, nodes).all]


def test_what_stages_hold():
    assert cpus(Plain()) == [1] and cpus(Plain(), THREE) == [1]
    assert cpus(Plain(resources=Resources(cpus=0.5))) == [0.5]
    assert cpus(Train()) == [2] and cpus(Train(), THREE) == [8]
    assert cpus(Train(resources=Resources(cpus=1.0))) == [1]
    assert cpus(Train(workers=2)) == [0, 1, 1]
    assert cpus(Judge(rows=Plain(), model=Teacher()), THREE) == [8]
    assert cpus(Talk(seeds=Plain())) == [0, 2], "its engine takes a node, its own logic nothing"
    assert cpus(Talk(seeds=Plain(), concurrency=2)) == [0, 1, 1] and cpus(Talk(seeds=Plain(), concurrency=3)) == [
        0,
        1,
        1,
        1,
    ]


def test_threads_follow_cpus():
    assert needs_of(Train(), TWO).task.threads == 2
    assert needs_of(Train(resources=Resources(cpus=0.9)), TWO).task.threads == 1
    assert needs_of(Train(resources=Resources(cpus=2.0, threads=5)), TWO).task.threads == 5


def test_what_must_run_beside_the_driver():
    needs = needs_of(Read(), THREE)
    assert needs.on_driver_node and fits(needs, THREE) == [(0, needs.task)]
    assert needs_of(Read(), [Node(0, driver=True), Node(8)]).task.cpus == 0, "a head node without CPUs still reads"


def test_what_does_not_fit_is_refused_with_the_sum():
    with pytest.raises(CannotPlace, match=r"needs 3 cpus at once \(4 processes\); the cluster has 2 cpus") as caught:
        refuse_unplaceable(Train(workers=3), TWO)
    assert caught.value.where == "Train"
    with pytest.raises(CannotPlace, match=r"1 cpus, 1 gpus"):
        refuse_unplaceable(Plain(resources=Resources(gpus=1.0)), TWO)
    with pytest.raises(CannotPlace, match="on the driver's node"):
        refuse_unplaceable(Read(resources=Resources(cpus=4.0)), THREE)
    with pytest.raises(CannotPlace, match="bytes of memory"):
        refuse_unplaceable(Plain(resources=Resources(memory=10**15)), [Node(2, 0, 10**9)])
    refuse_unplaceable(Train(workers=2), TWO)
    refuse_unplaceable(Train(workers=13), THREE)


def test_a_sum_that_fits_no_packing_is_refused():
    needs = Needs(Resources(cpus=0.0), (Resources(cpus=3.0),) * 3)
    assert fits(needs, [Node(5), Node(5)]) is None and fits(needs, [Node(6), Node(3)]) is not None


def test_a_stage_is_let_in_whole_or_not_at_all():
    capacity, two = Capacity(TWO), Needs(Resources(cpus=0.0), (Resources(cpus=1.0),) * 2)
    assert capacity.admit("a", two) and not capacity.admit("b", two)
    assert not capacity.admit("b", Needs(Resources(cpus=0.1)))
    capacity.release("a")
    assert capacity.admit("b", two)


def test_a_waiting_stage_lends_what_it_holds():
    capacity, two = Capacity(TWO), Needs(Resources(cpus=2.0))
    assert capacity.admit("sweep", two)
    capacity.wait("sweep")
    capacity.wait("sweep")
    assert capacity.admit("trial", two)
    capacity.resume("sweep")
    capacity.release("trial")
    capacity.resume("sweep")
    assert not capacity.admit("trial", two)
    capacity.release("sweep")
    assert capacity.admit("trial", two)


def test_this_machine():
    node = this_machine()
    assert node.cpus >= 1 and node.driver and node.memory == math.inf
