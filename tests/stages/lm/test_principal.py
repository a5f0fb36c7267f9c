"""The principal part: the largest singular components, the same every time."""

import torch

from graftline.stages.lm.principal import principal


def test_it_is_the_best_approximation_of_its_rank():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=draw) @ torch.diag(torch.arange(96, 0, -1.0) / 96)
    a, b = principal("layer", weight, 6)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    best = (left[:, :6] * values[:6]) @ right[:6]
    assert a.shape == (6, 96) and b.shape == (48, 6)
    assert (weight - b @ a).norm() < 1.001 * (weight - best).norm()
    assert torch.linalg.matrix_rank(b @ a, rtol=1e-4) == 6


def test_it_depends_on_nothing_else_and_disturbs_no_randomness():
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    one = principal("layer", weight, 4)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = principal("layer", weight, 4)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_its_factors_are_exact_in_bf16():
    for factor in principal("layer", torch.randn(32, 48), 4):
        assert factor.dtype == torch.float32 and torch.equal(factor, factor.to(torch.bfloat16).float())
