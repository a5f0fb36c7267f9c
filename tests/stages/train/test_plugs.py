import pytest
import torch

from graftline.stages.train.plugs import Adapter, Attached, Base, Batch, Bound, Drawn, Objective, Optimizer, Sampler


def test_what_a_slot_must_define_says_so():
    calls = [
        (Adapter(), "attach", (None, {}, 0)),
        (Adapter(), "reopen", (None, None, "float32")),
        (Objective(), "prepare", (None, None)),
        (Objective(), "collate", ([], [], [])),
        (Objective(), "loss", (None, None, None)),
        (Optimizer(), "bind", ({}, 1)),
        (Sampler(), "start", (1, 1, 0, 1)),
    ]
    for plug, name, given in calls:
        with pytest.raises(NotImplementedError, match=rf"{type(plug).__name__}\.{name}"):
            getattr(plug, name)(*given)


def test_what_it_need_not_define_changes_nothing():
    weight = torch.ones(2, 2)
    assert Base().hold("layer", weight) is None and Adapter().split("layer", weight) == (weight, None)
    attached = Attached(torch.nn.Linear(1, 1), {"b": torch.nn.Parameter(weight), "a": torch.nn.Parameter(weight)})
    assert list(attached.parameters) == ["a", "b"], "the same order on every worker"
    assert attached.extra_loss() is None and attached.state() == {}
    assert Bound().needs_backward and Bound().before_forward(0) is None
    assert not Drawn().observes and Drawn().state() == Drawn().numbers() == {} and Drawn().peek(0) == []
    assert Objective().length({"input_ids": [1, 2, 3]}) == 3


def test_a_batch_is_moved_and_not_changed():
    batch = Batch((1, 2), {"x": torch.ones(2)}, weight=3.0, tokens=4)
    moved = batch.to("meta")
    assert moved.tensors["x"].device.type == "meta" and batch.tensors["x"].device.type == "cpu"
    assert (moved.rows, moved.weight, moved.tokens) == ((1, 2), 3.0, 4)
