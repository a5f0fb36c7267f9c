"""What a run logs is there for TensorBoard: every finite number at its step, a folder a stage."""

import pyarrow.fs as fs
import pytest

from graftline.pipelines.store import Store
from graftline.pipelines.tensorboard import Events


def scalars(folder):
    """(name, step, value) of every event in a folder, read from the files' records."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:  # length (8 bytes), its checksum (4), the record, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            found += [(each.tag, event.step, round(each.simple_value, 4)) for each in event.summary.value]
    return found


@pytest.mark.parametrize("remote", [False, True])
def test_every_finite_number_at_its_step(tmp_path, remote):
    far = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    store = Store("store", far) if remote else Store(str(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    events = Events(store, "runs/one")
    events.add("Train", {"step": 1, "loss": 2.5, "why": "text", "bad": float("nan")}, 1e9)
    events.add("Train", {"step": 2, "loss": 1.5, "lr": 1e-3}, 1e9 + 1)
    events.add("my stage", {"step": 1, "loss": 9.0}, 1e9)
    events.close()
    events.close()
    place = tmp_path / "store" / "runs" / "one" / "tensorboard"
    assert sorted(each.name for each in place.iterdir()) == ["Train", "my-stage"]
    assert scalars(place / "Train") == [("loss", 1, 2.5), ("loss", 2, 1.5), ("lr", 2, 0.001)]
    assert scalars(place / "my-stage") == [("loss", 1, 9.0)]


def test_a_run_without_numbers_leaves_no_folder(tmp_path):
    events = Events(Store(str(tmp_path)), "runs/one")
    events.add("Train", {"step": 1}, 1e9)
    events.close()
    assert list(tmp_path.iterdir()) == []
