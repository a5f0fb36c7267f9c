import pytest
import torch

from graftline.stages.train import collectives
from graftline.stages.train.collectives import Alone, ProcessGroup


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone: what goes in comes out, by the same path."""
    import torch.distributed as distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield ProcessGroup()
    distributed.destroy_process_group()


@pytest.mark.parametrize("bucket", [1, 5, 1000])
def test_tensors_keep_their_shapes_and_places_whatever_the_buckets(group, monkeypatch, bucket):
    monkeypatch.setattr(collectives, "BUCKET", bucket)
    tensors = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.ones(4, 1)]
    before = [each.clone() for each in tensors]
    group.sum(tensors)
    assert all(torch.equal(each, then) for each, then in zip(tensors, before, strict=True))
    group.sum([])
    assert (group.rank, group.size, group.gather({"a": 1})) == (0, 1, [{"a": 1}])


def test_alone_is_a_group_of_one():
    tensor = torch.ones(2)
    Alone().sum([tensor])
    assert tensor.tolist() == [1, 1] and Alone().gather("x") == ["x"] and (Alone().rank, Alone().size) == (0, 1)
