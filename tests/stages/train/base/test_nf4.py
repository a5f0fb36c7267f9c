"""Training over NF4: the base stays as it is to the byte, and an evaluation costs no gradient."""

import pytest
import torch

from graftline.stages.errors import InvalidField
from graftline.stages.train import AdamW, Float, Lora, Nf4, Sft, Shuffled, Train
from graftline.stages.train.build import build
from graftline.stages.train.collectives import Alone
from graftline.stages.train.loop import train
from graftline.stages.train.plugs import LossContext
from graftline.stages.train.source import IndexPlan

LENGTHS = [9, 17, 5, 12, 24, 8]


@pytest.fixture(params=["all-linear", ("q_proj",)], ids=["all", "some"])
def attached(request, tiny_directory, repacking):
    """A LoRA on the `tiny` model held in NF4. Layers without a LoRA are bitsandbytes' own, which repack."""
    import bitsandbytes  # noqa: F401  seconds, which are no test's own
    import peft  # noqa: F401

    return build(tiny_directory / "model", "float32", Nf4(), Lora(rank=2, targets=request.param), 0, "cpu")


def packed(model):
    return {name: each.weight.data for name, each in model.named_modules() if hasattr(each, "quant_state")}


def test_the_packed_base_is_the_same_after_training(attached, rows, settings, recorder):
    before = {name: each.clone() for name, each in packed(attached.model).items()}
    others = {name: each.clone() for name, each in attached.model.named_parameters() if not each.requires_grad}
    assert len(before) == 14
    plan = IndexPlan(Shuffled().start(len(LENGTHS), 3, 0), 3, 18)
    given = (plan, rows(LENGTHS), rows(LENGTHS), settings(), recorder(), Alone())
    _, outcome = train(attached, Sft(), AdamW(lr=0.02), *given)
    evaluated = outcome.values("eval_loss")
    assert evaluated[-1] < evaluated[0] and outcome.step == 6
    after = packed(attached.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, each in attached.model.named_parameters():
        if name in others:
            assert torch.equal(each, others[name]) and each.grad is None


def gradients(attached, batch):
    for each in attached.parameters.values():
        each.grad = None
    attached.model.train()
    Sft().loss(attached.model, batch, LossContext(0, 1, True)).loss_sum.backward()
    return {name: each.grad.clone() for name, each in attached.parameters.items()}


def test_gradients_are_the_same_before_and_after_an_evaluation(attached, rows):
    for name, each in attached.parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.1)
    table = rows(LENGTHS)
    batch = Sft().collate([0, 1], [table[0], table[1]], [1.0, 1.0])
    before = gradients(attached, batch)
    attached.model.eval()
    with torch.no_grad():
        Sft().loss(attached.model, batch, LossContext(0, 1, False))
    after = gradients(attached, batch)
    assert len(before) in (28, 4) and all(torch.equal(before[name], after[name]) for name in before)


def test_built_from_a_directory_in_the_runs_dtype(tiny_directory):
    one, other = (
        build(tiny_directory / "model", dtype, Nf4(), Lora(rank=2), 0, "cpu") for dtype in ("float32", "bfloat16")
    )
    assert {each.dtype for each in other.parameters.values()} == {torch.bfloat16}
    base, same = packed(one.model), packed(other.model)
    assert len(base) == 14 and all(torch.equal(base[name], same[name]) for name in base)
    assert {each.dtype for each in other.model.parameters() if each.is_floating_point()} == {torch.bfloat16}


def test_double_quantisation_is_a_field_and_cards_tell_the_two_apart():
    assert (Nf4().held, Nf4(double=False).held, Float().held) == ("nf4", "nf4-single", "none")
    layers = [Nf4(double=double).hold("layer", torch.randn(32, 64)) for double in (True, False)]
    assert [layer.weight.quant_state.nested for layer in layers] == [True, False]


def test_what_trains_the_base_itself_is_refused():
    from graftline.stages import Llm, Source
    from graftline.stages.train import Full

    class Given(Source):
        pass

    with pytest.raises(InvalidField, match=r"Train\.base: Full\(\) trains the base's own weights"):
        Train(model=Llm("tiny"), rows=Given(), base=Nf4(), adapter=Full())
