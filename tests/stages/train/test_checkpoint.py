"""All that a resumed run needs, and no pickle. That runs end with the same bits is `test_loop.py`'s."""

import pytest
import torch

from graftline.stages.errors import StoreFailed
from graftline.stages.train import AdamW, Lora, Shuffled
from graftline.stages.train.checkpoint import Outcome, checkpoint, resume
from graftline.stages.train.masters import masters_of
from graftline.stages.train.source import IndexPlan


@pytest.fixture
def parts(llama):
    """Makes what a checkpoint is of: adapter, masters, optimizer, source."""

    def make():
        attached = Lora(rank=2).attach(llama().to(torch.bfloat16), {}, 0)
        masters = masters_of(attached)
        return attached, masters, AdamW(lr=0.1).bind(masters, 6), IndexPlan(Shuffled().start(6, 3, 0), 3, 18)

    return make


def stepped(attached, masters, bound, source):
    for each in masters.values():
        each.grad = torch.ones_like(each)
    bound.step(0, lambda: 0.0)


def test_what_is_written_comes_back(parts, recorder):
    written, read, reporter = parts(), parts(), recorder()
    stepped(*written)
    outcome = Outcome(4, 99, 1.5, [(0, {"eval_loss": 2.0}), (4, {"loss": 1.25})])
    reporter.save(4, checkpoint(*written, outcome))
    assert resume(*read, reporter) == outcome and outcome.values("loss") == [1.25]
    for name, master in written[1].items():
        assert torch.equal(read[1][name], master)
        assert torch.equal(read[0].parameters[name], master.bfloat16()), "the model has it, too"
    states = (written[2].state(), read[2].state())
    assert set(states[0]) == set(states[1]) and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert dict(written[3].state()) == dict(read[3].state())


def test_without_one_a_run_begins(parts, recorder):
    read = parts()
    before = {name: each.clone() for name, each in read[1].items()}
    assert resume(*read, recorder()) == Outcome()
    assert all(torch.equal(read[1][name], before[name]) for name in before)


def test_no_checkpoint_holds_a_pickle(parts, recorder, tmp_path):
    recorder("here").save(1, checkpoint(*parts(), Outcome(1)))
    files = [path.name for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert sorted(files) == ["state.json", "state.safetensors"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_broken_checkpoint_is_said_to_be_one(parts, recorder, tmp_path, name):
    reporter = recorder("here")
    reporter.save(1, checkpoint(*parts(), Outcome(1)))
    (next((tmp_path / "here").iterdir()) / name).write_text("{")
    with pytest.raises(StoreFailed, match="cannot read the checkpoint"):
        resume(*parts(), reporter)
