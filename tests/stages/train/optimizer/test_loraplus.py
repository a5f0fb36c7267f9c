import pytest
import torch

from graftline.stages import Llm, Source, train
from graftline.stages.errors import InvalidField
from graftline.stages.train import AdamW, Full, Lora, LoraPlus


class Given(Source):
    """Rows that a test has."""


SHAPES = {
    "layers.0.q_proj.lora_A.weight": (2, 6),
    "layers.0.q_proj.lora_B.weight": (6, 2),
    "layers.0.q_proj.lora_magnitude_vector.weight": (6,),
    "layers.1.lora_Bias_like.weight": (3, 3),
    "embed.lora_embedding_A": (2, 5),
    "embed.lora_embedding_B": (5, 2),
}


def parameters():
    torch.manual_seed(0)
    return {
        name: (torch.zeros(shape) if "lora_B.weight" in name else torch.randn(shape)).requires_grad_(True)
        for name, shape in SHAPES.items()
    }


def steps(plug, count=5):
    masters = parameters()
    bound = plug.bind(masters, count)
    for step in range(count):
        torch.manual_seed(step)
        for each in masters.values():
            each.grad = torch.randn_like(each)
        bound.step(step, lambda: 0.0)
    return masters


def test_a_ratio_of_1_is_adamw_to_the_bit():
    fields = {"lr": 0.01, "weight_decay": 0.1}
    plain, plus = steps(AdamW(**fields)), steps(LoraPlus(ratio=1.0, embedding_lr=0.01, **fields))
    assert all(torch.equal(plain[name], plus[name]) for name in plain)


def test_every_b_and_nothing_else_is_fast():
    masters = parameters()
    start = {name: each.detach().clone() for name, each in masters.items()}
    bound = LoraPlus(lr=0.01, ratio=16.0, embedding_lr=1e-4, warmup=0.0, clip=None).bind(masters, 1)
    for each in masters.values():
        each.grad = torch.ones_like(each)
    bound.step(0, lambda: 0.0)
    moved = {name: float((each.detach() - start[name]).abs().max()) for name, each in masters.items()}
    slow, own = pytest.approx(0.01, rel=1e-4), pytest.approx(1e-4, rel=1e-3)
    assert moved == dict(zip(SHAPES, (slow, pytest.approx(0.16, rel=1e-4), slow, slow, own, own), strict=True))


def test_the_schedule_moves_both(llama):
    import peft  # noqa: F401  seconds, which are no test's own

    plug = LoraPlus(lr=0.01, ratio=4.0, schedule="linear")
    attached = Lora(rank=2).attach(llama(), {}, 0)
    bound = plug.bind(attached.parameters, 10)
    names = {id(each): name for name, each in attached.parameters.items()}
    for step in range(10):
        bound.step(step, lambda: 0.0)
        rates = {names[id(each)]: group["lr"] for group in bound.adamw.param_groups for each in group["params"]}
        slow = plug.rate(step, 10)
        assert len(rates) == 2 * 14
        assert all(rate == pytest.approx(slow * (4 if ".lora_B." in name else 1)) for name, rate in rates.items())


def test_an_adapter_without_a_b_that_starts_at_zero_is_refused():
    def build(adapter):
        return train.Train(model=Llm("tiny"), rows=Given(), adapter=adapter, optimizer=LoraPlus())

    class Principal(Lora):
        off_is_base = False

    build(Lora())
    for adapter in (Full(), Principal()):
        with pytest.raises(InvalidField, match=r"^Train\.optimizer: .*has none"):
            build(adapter)
    masters = parameters()
    with torch.no_grad():
        masters["layers.0.q_proj.lora_B.weight"][0, 0] = 1.0
    with pytest.raises(InvalidField, match=r"q_proj\.lora_B\.weight does not start at zero"):
        LoraPlus().bind(masters, 1)
    with pytest.raises(InvalidField, match="no parameter is called lora_B"):
        LoraPlus().bind({"w": torch.zeros(2, 2)}, 1)
