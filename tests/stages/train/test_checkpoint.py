"""A checkpoint holds all that a run needs to go on."""

import json

import torch

from graftline.stages.train import AdamW, Lora, Shuffled
from graftline.stages.train.checkpoint import Outcome, checkpoint, resume
from graftline.stages.train.masters import masters_of
from graftline.stages.train.source import IndexPlan


def begun(llama, dtype=torch.float32):
    attached = Lora(rank=2).attach(llama().to(dtype), {}, 0)
    masters = masters_of(attached)
    return attached, masters, AdamW(lr=0.1).bind(masters, 6), IndexPlan(Shuffled().start(10, 4, 0), 4, 24)


def test_what_was_saved_comes_back(llama, recorder):
    attached, masters, bound, source = begun(llama, torch.bfloat16)
    for each in masters.values():
        each.grad = torch.ones_like(each)
    bound.step(0, lambda: 0.0)
    source.next(0)
    kept = Outcome(1, 99, 2.5, [(0, {"eval_loss": 3.0}), (1, {"loss": 2.0})])
    recorder().save(1, checkpoint(attached, masters, bound, source, kept))

    fresh, others, rebound, resumed = begun(llama, torch.bfloat16)
    assert any(not torch.equal(each, others[name]) for name, each in masters.items())
    assert resume(fresh, others, rebound, resumed, recorder()) == kept
    assert all(torch.equal(each, others[name]) for name, each in masters.items())
    assert all(torch.equal(each, others[name].bfloat16()) for name, each in fresh.parameters.items())
    state = rebound.state()
    assert all(torch.equal(each, state[name]) for name, each in bound.state().items())
    assert resumed.next(1) == source.next(1) and resumed.state() == source.state()


def test_without_one_a_run_starts_at_the_start(llama, recorder):
    assert resume(*begun(llama), recorder()) == Outcome()


def test_numbers_are_kept_as_text(llama, recorder, tmp_path):
    recorder().save(3, checkpoint(*begun(llama), Outcome(3)))
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert json.loads((folder / "state.json").read_text())["step"] == 3
    assert not Outcome(history=[(1, {"loss": 2.0})]).values("eval_loss")
