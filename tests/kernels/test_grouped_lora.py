"""Every token gets exactly its own adapter, whatever the ranks, scales and order of the batch."""

import pytest
import torch

from graftline.kernels.grouped_lora import BASE, Factors, Segment, grouped_lora, segment

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
