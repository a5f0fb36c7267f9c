"""Every token gets exactly its own adapter, or its own mixture, whatever the ranks, scales and order of the batch, by
the reference and by the twin; gradients are those of the plain sum."""

import pytest
import torch

from graftline.kernels import grouped_lora as kernel
from graftline.kernels.grouped_lora import (
    BASE,
    STACKED,
    Factors,
    Segment,
    grouped_lora,
    mixture,
    others,
    segment,
    stack,
    stacked_lora,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RANKS = {0: 4, 1: 16, 5: 1}


def factors(slot: int, dtype: torch.dtype = torch.float32) -> Factors:
    draw = torch.Generator().manual_seed(slot)
    a = torch.randn(RANKS[slot], 24, generator=draw).to(dtype)
    b = torch.randn(40, RANKS[slot], generator=draw).to(dtype)
    return Factors(a, b, 0.5 + slot)


def one_by_one(output, x, known, slots):
    expected = output.clone()
    for token, slot in enumerate(slots):
        if slot in known:
            own = known[slot]
            expected[token] += own.scale * (own.b @ (own.a @ x[token]))
    return expected


@pytest.mark.parametrize(
    "slots",
    [
        [BASE] * 7,
        [0, 0, 0, 1, 1, BASE, 5],
        [5, 0, 1, 0, BASE, 5, 1],
        [1] * 7,
    ],
)
def test_equals_a_loop_over_tokens(slots):
    known = {slot: factors(slot) for slot in RANKS}
    x, output = torch.randn(7, 24), torch.randn(7, 40)
    expected = one_by_one(output, x, known, slots)
    torch.testing.assert_close(grouped_lora(output.clone(), x, known, segment(slots)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("slots", [[BASE] * 7, [0, 0, 0, 1, 1, BASE, 5], [5, 0, 1, 9, BASE, 5, 1]])
def test_a_stack_equals_a_loop_over_tokens(slots):
    known = {slot: factors(slot) for slot in RANKS}
    x, output = torch.randn(7, 24), torch.randn(7, 40)
    stacked = stack(known)
    found = stacked_lora(output.clone(), x, stacked, others(slots, stacked.ranks))
    torch.testing.assert_close(found, one_by_one(output, x, known, slots), atol=1e-4, rtol=1e-4)
    based = [place for place, slot in enumerate(slots) if slot not in known]
    assert torch.equal(found[based], output[based])


def test_another_adapters_infinity_stays_its_own():
    known = {slot: factors(slot) for slot in RANKS}
    known[1] = Factors(known[1].a * 1e38, known[1].b, 1e38)
    x, output = torch.randn(2, 24), torch.zeros(2, 40)
    stacked = stack(known)
    found = stacked_lora(output, x, stacked, others([0, 1], stacked.ranks))
    assert bool(found[0].isfinite().all()) and not bool(found[1].isfinite().all())


def test_one_adapter_or_too_many_are_not_stacked():
    wide = Factors(torch.zeros(STACKED, 24), torch.zeros(40, STACKED), 1.0)
    assert stack({0: factors(0)}) is None
    assert stack({0: factors(0), 1: wide}) is None


def test_a_layer_an_adapter_leaves_alone_is_left_alone():
    x, output = torch.randn(4, 24), torch.randn(4, 40)
    changed = grouped_lora(output.clone(), x, {0: factors(0)}, segment([0, 1, 0, 1]))
    assert torch.equal(changed[[1, 3]], output[[1, 3]])
    assert not torch.equal(changed[[0, 2]], output[[0, 2]])


def test_a_token_does_not_depend_on_its_batch_mates():
    known = {slot: factors(slot) for slot in RANKS}
    x, output = torch.randn(6, 24), torch.randn(6, 40)
    alone = grouped_lora(output[2:3].clone(), x[2:3], known, segment([1]))
    for slots in ([0, 0, 1, 5, 5, 5], [1] * 6, [BASE, 5, 1, BASE, 1, 0]):
        mixed = grouped_lora(output.clone(), x, known, segment(slots))
        torch.testing.assert_close(mixed[2:3], alone, atol=1e-5, rtol=1e-5)


def test_bf16_stays_bf16_and_near():
    known = {slot: factors(slot, torch.bfloat16) for slot in RANKS}
    x, output = torch.randn(7, 24).bfloat16(), torch.zeros(7, 40).bfloat16()
    slots = [5, 0, 1, 0, BASE, 5, 1]
    expected = one_by_one(output.float(), x.float(), {s: Factors(f.a.float(), f.b.float(), f.scale) for s, f in known.items()}, slots)  # fmt: skip  # noqa: E501
    found = grouped_lora(output, x, known, segment(slots))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.6, rtol=0.03)


def test_tokens_that_lie_together_are_a_slice():
    assert segment([0, 0, BASE, 1]) == (Segment(0, slice(0, 2)), Segment(1, slice(3, 4)))
    (scattered,) = segment([0, BASE, 0])
    assert scattered.tokens.tolist() == [0, 2]


def summed(output, x, known, chosen, gates):
    """Token by token and choice by choice, as written."""
    rows = []
    for token in range(len(x)):
        row = output[token]
        for choice, slot in enumerate(chosen[token].tolist()):
            if slot in known:
                own = known[slot]
                row = row + gates[token, choice] * own.scale * (own.b @ (own.a @ x[token]))
        rows.append(row)
    return torch.stack(rows)


CHOSEN = torch.tensor([[0, 1], [1, 5], [BASE, 0], [5, 5], [BASE, BASE], [1, 0], [7, 1]])
"""Two choices a token: none, one or both an adapter, the same one twice, or one that leaves this layer alone."""


def given(dtype=torch.float64, device="cpu"):
    draw = torch.Generator().manual_seed(11)
    known = {slot: factors(slot, dtype) for slot in RANKS}
    tensors = {
        "output": torch.randn(7, 40, generator=draw),
        "x": torch.randn(7, 24, generator=draw),
        "gates": torch.rand(7, 2, generator=draw),
    }
    tensors |= {f"a{slot}": each.a for slot, each in known.items()} | {
        f"b{slot}": each.b for slot, each in known.items()
    }
    return {name: each.to(device, dtype) for name, each in tensors.items()}


def of(tensors):
    return {slot: Factors(tensors[f"a{slot}"], tensors[f"b{slot}"], 0.5 + slot) for slot in RANKS}


def applied(tensors, segments=None):
    chosen = CHOSEN.to(tensors["x"].device)
    segments = segments or mixture(chosen, tensors["gates"])
    return grouped_lora(tensors["output"].clone(), tensors["x"], of(tensors), segments)


@pytest.mark.parametrize("slots", [None, [5, 0, 1, 0, BASE, 5, 1], [0, 0, 0, 1, 1, BASE, 5]], ids=str)
def test_gradients_against_differences(slots):
    """Of x, of the output, of every factor and of the gates."""
    tensors = given()
    names = [name for name in tensors if slots is None or name != "gates"]

    def output(*values):
        return applied(tensors | dict(zip(names, values, strict=True)), None if slots is None else segment(slots))

    assert torch.autograd.gradcheck(output, tuple(tensors[name].requires_grad_() for name in names), fast_mode=True)


def trained(tensors, apply):
    """Value and every gradient."""
    leaves = {name: each.clone().requires_grad_() for name, each in tensors.items()}
    output = apply(leaves)
    output.square().sum().backward()
    return {"value": output.detach()} | {name: each.grad for name, each in leaves.items()}


def written(leaves):
    return summed(leaves["output"], leaves["x"], of(leaves), CHOSEN, leaves["gates"])


@pytest.mark.parametrize("twin", [False, True], ids=["reference", "twin"])
def test_a_mixture_is_the_sum_of_its_gated_adapters(monkeypatch, twin):
    monkeypatch.setattr(kernel, "compiled", lambda _: twin)
    expected = trained(given(), written)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-2)):
        found = trained(given(dtype, DEVICE), applied)
        for name, wanted in expected.items():
            assert found[name].dtype == dtype
            error = (found[name].cpu().double() - wanted).abs().max()
            assert error <= tolerance * wanted.abs().max(), name


@pytest.mark.parametrize("slots", [[0, 0, 0, 1, 1, BASE, 5], [5, 0, 1, 0, BASE, 5, 1], [1] * 7], ids=str)
@pytest.mark.parametrize("split", [1, 8])
def test_the_twin_is_the_reference(monkeypatch, slots, split):
    """In the forward pass and in what flows back, with the sum over the inputs whole or split."""
    monkeypatch.setattr(kernel, "compiled", lambda _: True)
    monkeypatch.setattr(kernel, "_SPLIT", split)
    known = {slot: factors(slot) for slot in RANKS}
    x, output, wide = torch.randn(7, 24), torch.randn(7, 40), torch.randn(7, 200)
    on_device = {slot: Factors(each.a.to(DEVICE), each.b.to(DEVICE), each.scale) for slot, each in known.items()}
    found = grouped_lora(output.clone().to(DEVICE), x.to(DEVICE), on_device, segment(slots, DEVICE))
    torch.testing.assert_close(found.cpu(), one_by_one(output, x, known, slots), atol=1e-4, rtol=1e-4)
    deep = {slot: Factors(torch.randn(rank, 200), torch.randn(3, rank), 1.5) for slot, rank in RANKS.items()}
    on_device = {slot: Factors(each.a.to(DEVICE), each.b.to(DEVICE), each.scale) for slot, each in deep.items()}
    found = grouped_lora(torch.zeros(7, 3, device=DEVICE), wide.to(DEVICE), on_device, segment(slots, DEVICE))
    torch.testing.assert_close(found.cpu(), one_by_one(torch.zeros(7, 3), wide, deep, slots), atol=1e-3, rtol=1e-4)


def test_the_twin_refuses_factors_that_it_would_misread(monkeypatch):
    monkeypatch.setattr(kernel, "compiled", lambda _: True)
    x, output = torch.zeros(2, 24, device=DEVICE), torch.zeros(2, 40, device=DEVICE)
    a, b = torch.zeros(24, 4, device=DEVICE).t(), torch.zeros(40, 4, device=DEVICE)
    for wrong in (Factors(a, b, 1.0), Factors(a.half().contiguous(), b, 1.0)):
        with pytest.raises(ValueError, match="contiguous and in the dtype of x"):
            grouped_lora(output, x, {0: wrong}, segment([0, 0]))


def test_jobs_train_in_one_batch_as_they_do_alone():
    """Each job's adapter gets the gradients of its own rows, as if the others were not there."""
    slots, tensors = [5, 0, 1, 0, BASE, 5, 1], given()
    together = trained(tensors, lambda leaves: applied(leaves, segment(slots)))
    for slot in RANKS:
        mine = [token for token, each in enumerate(slots) if each == slot]
        part = {name: each[mine] if name in ("x", "output") else each for name, each in tensors.items()}
        alone = trained(part, lambda leaves, slot=slot: applied(leaves, segment([slot, slot])))
        for name in (f"a{slot}", f"b{slot}"):
            torch.testing.assert_close(together[name], alone[name])
        torch.testing.assert_close(together["x"][mine], alone["x"])


def test_a_mixture_groups_by_adapter():
    gates = torch.arange(14.0).view(7, 2)
    found = {each.slot: (each.tokens.tolist(), each.gates.tolist()) for each in mixture(CHOSEN, gates)}
    assert found[0] == ([0, 2, 5], [0, 5, 11]) and found[5] == ([1, 3, 3], [3, 6, 7]) and BASE not in found
