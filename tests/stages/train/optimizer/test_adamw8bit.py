import pytest
import torch
from safetensors.torch import load, save

from graftline.stages.errors import InvalidField
from graftline.stages.train import AdamW, AdamW8bit

FIELDS = {"lr": 0.01, "warmup": 0.0, "schedule": "constant", "clip": None}
SHAPES = {"w": (96, 64), "small.weight": (8, 8), "norm.weight": (70, 70), "bias": (5000,)}


def parameters():
    torch.manual_seed(0)
    return {name: torch.randn(shape).requires_grad_(True) for name, shape in SHAPES.items()}


def run(masters, bound, steps):
    for step in steps:
        torch.manual_seed(step)
        for each in masters.values():
            # a loss with a minimum, and noise: ½‖θ - 1‖² + ⟨noise, θ⟩
            each.grad = each.detach() - 1 + 0.3 * torch.randn_like(each)
        bound.step(step, lambda: 0.0)
    return masters


def test_the_first_step_is_the_closed_form_and_what_is_excluded_does_not_decay():
    masters = parameters()
    before = {name: each.detach().clone() for name, each in masters.items()}
    run(masters, AdamW8bit(weight_decay=0.1, **FIELDS).bind(masters, 1), [0])
    for name, each in masters.items():
        moved = before[name] - 0.01 * each.grad / (each.grad.abs() + 1e-8)  # m̂ = g, v̂ = g²
        decay = 0.01 * 0.1 * before[name] if name in ("w", "small.weight") else 0.0
        assert torch.allclose(each, moved - decay, atol=1e-6), name


def test_fifty_steps_stay_near_adamws():
    plain, eight = parameters(), parameters()
    start = parameters()
    run(plain, AdamW(weight_decay=0.01, **FIELDS).bind(plain, 50), range(50))
    run(eight, AdamW8bit(weight_decay=0.01, **FIELDS).bind(eight, 50), range(50))
    assert torch.allclose(plain["small.weight"], eight["small.weight"], atol=1e-5), "small tensors keep fp32 state"
    for name in ("w", "norm.weight", "bias"):
        way = (plain[name] - start[name]).norm()
        assert 0 < (plain[name] - eight[name]).norm() < 0.03 * way, name
        losses = [float(((each[name].detach() - 1) ** 2).mean()) for each in (start, plain, eight)]
        assert losses[1] < 0.7 * losses[0] and losses[2] == pytest.approx(losses[1], rel=0.02)


def test_its_state_is_a_quarter_of_adamws():
    sizes = {}
    for plug in (AdamW(), AdamW8bit()):
        masters = {"w": torch.zeros(512, 512, requires_grad=True)}
        bound = plug.bind(masters, 2)
        run(masters, bound, [0])
        sizes[type(plug).__name__] = bound.state_bytes()
    assert sizes["AdamW"] == pytest.approx(8 * 512 * 512, rel=0.001)
    assert sizes["AdamW8bit"] == pytest.approx((2 + 8 / 256) * 512 * 512, rel=0.001)


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_resumed_run_is_the_same_to_the_bit(stop):
    plug = AdamW8bit(weight_decay=0.01)
    straight = parameters()
    run(straight, plug.bind(straight, 9), range(9))
    first = parameters()
    bound = plug.bind(first, 9)
    run(first, bound, range(stop))
    kept = load(save({name: each.contiguous() for name, each in bound.state().items()}))  # as a checkpoint does
    again = {name: each.detach().clone().requires_grad_(True) for name, each in first.items()}
    bound = plug.bind(again, 9)
    bound.load(kept)
    run(again, bound, range(stop, 9))
    assert all(torch.equal(again[name], straight[name]) for name in straight)
    assert {each.dtype for name, each in kept.items() if name == "state1/w"} == ({torch.uint8} if stop else set())


def test_a_parameter_without_a_gradient_stays_and_has_no_state():
    masters = parameters()
    before = masters["w"].detach().clone()
    for name, each in masters.items():
        each.grad = None if name == "w" else torch.ones_like(each)
    bound = AdamW8bit(weight_decay=0.5).bind(masters, 1)
    bound.step(0, lambda: 0.0)
    assert torch.equal(masters["w"], before) and not [name for name in bound.state() if name.endswith("/w")]


def test_how_small_is_too_small():
    masters = parameters()
    bound = AdamW8bit(min_8bit_size=64).bind(masters, 1)
    run(masters, bound, [0])
    assert bound.state()["state1/small.weight"].dtype == torch.uint8
    with pytest.raises(InvalidField, match=r"AdamW8bit\.min_8bit_size"):
        AdamW8bit(min_8bit_size=0)
