import math

import pytest
import torch

from graftline.stages.errors import InvalidField
from graftline.stages.train import AdamW


def parameters(**shapes):
    torch.manual_seed(0)
    return {name: torch.randn(shape).requires_grad_(True) for name, shape in shapes.items()}


def give_gradients(masters, seed):
    torch.manual_seed(seed)
    for each in masters.values():
        each.grad = torch.randn_like(each)


def nothing():
    raise AssertionError("AdamW asks for no loss")


def test_one_step_is_the_closed_form():
    plug = AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, warmup=0.0, schedule="constant", clip=None)
    masters = parameters(w=(3, 4))
    before = masters["w"].detach().clone()
    bound = plug.bind(masters, 10)
    m, v = torch.zeros(3, 4), torch.zeros(3, 4)
    for step in range(2):
        give_gradients(masters, step + 1)
        g = masters["w"].grad.clone()
        bound.step(step, nothing)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        hat_m, hat_v = m / (1 - 0.8 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
        before = before - 0.01 * (hat_m / (hat_v.sqrt() + 1e-6) + 0.1 * before)
        assert torch.allclose(masters["w"], before, atol=1e-6)


def test_norms_biases_embeddings_and_vectors_do_not_decay():
    masters = parameters(
        **{
            "layers.0.q_proj.lora_A": (2, 3),
            "norm.weight": (4, 4),
            "q_proj.bias": (3, 1),
            "embed_tokens.weight": (5, 2),
        },
        **{"scale": (2, 2), "vector": (7,)},
    )
    before = {name: each.detach().clone() for name, each in masters.items()}
    for each in masters.values():
        each.grad = torch.zeros_like(each)
    AdamW(lr=0.1, weight_decay=0.5, warmup=0.0).bind(masters, 1).step(0, nothing)
    moved = {name for name in masters if not torch.equal(masters[name], before[name])}
    assert moved == {"layers.0.q_proj.lora_A"}
    assert torch.allclose(masters["layers.0.q_proj.lora_A"], before["layers.0.q_proj.lora_A"] * (1 - 0.1 * 0.5))


def test_a_resumed_run_is_the_same_to_the_bit():
    plug = AdamW(weight_decay=0.01)

    def run(masters, bound, steps):
        for step in steps:
            give_gradients(masters, step)
            bound.step(step, nothing)

    straight = parameters(a=(4, 4), b=(3,))
    run(straight, plug.bind(straight, 9), range(9))
    first = parameters(a=(4, 4), b=(3,))
    bound = plug.bind(first, 9)
    run(first, bound, range(4))
    kept = {name: tensor.clone() for name, tensor in bound.state().items()}
    assert set(kept) == {f"{kind}/{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in "ab"}
    assert bound.state_bytes() == 2 * 4 * (16 + 3) + 2 * 4
    second = {name: each.detach().clone().requires_grad_(True) for name, each in first.items()}
    again = plug.bind(second, 9)
    again.load(kept)
    run(second, again, range(4, 9))
    assert all(torch.equal(straight[name], second[name]) for name in straight)


def test_clipping_is_by_the_norm_over_all_parameters():
    masters = parameters(a=(2, 2), b=(5,))
    give_gradients(masters, 3)
    norm = math.sqrt(sum(float((each.grad**2).sum()) for each in masters.values()))
    bound = AdamW(clip=norm / 4, warmup=0.0).bind(masters, 1)
    said = bound.step(0, nothing)
    assert said["grad_norm"] == pytest.approx(norm, rel=1e-5)
    clipped = math.sqrt(sum(float((each.grad**2).sum()) for each in masters.values()))
    assert clipped == pytest.approx(norm / 4, rel=1e-4)


def test_schedules():
    def rates(**fields):
        plug = AdamW(lr=1.0, **fields)
        return [plug.rate(step, 10) for step in range(10)]

    assert rates(warmup=0.0, schedule="constant") == [1.0] * 10
    assert rates(warmup=0.2, schedule="constant") == [0.5] + [1.0] * 9
    assert rates(warmup=0.0, schedule="linear") == pytest.approx([1 - step / 10 for step in range(10)])
    cosine = rates(warmup=0.3, schedule="cosine")
    assert cosine[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert cosine[4:] == pytest.approx([(1 + math.cos(math.pi * step / 7)) / 2 for step in range(1, 7)])
    assert all(rate > 0 for rate in cosine) and AdamW().rate(0, 1) > 0


def test_a_parameter_without_a_gradient_stays():
    masters = parameters(a=(2, 2), b=(2, 2))
    before = masters["b"].detach().clone()
    masters["a"].grad = torch.ones(2, 2)
    AdamW(weight_decay=0.5).bind(masters, 1).step(0, nothing)
    assert torch.equal(masters["b"], before)


@pytest.mark.parametrize(
    "fields", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"clip": 0.0}, {"schedule": "step"}, {"eps": -1.0}]
)
def test_numbers_out_of_range_are_refused(fields):
    with pytest.raises(InvalidField, match=f"AdamW.{next(iter(fields))}"):
        AdamW(**fields)
