"""How a change is measured: shares of norms, and how far two models' logits are apart."""

import math

import torch

from graftline.stages.merge.folding import Change, apart


def test_shares_are_of_all_layers_together():
    change = Change({"a": (3.0, 6.0, 0.0), "b": (4.0, 8.0, 1.0)})
    assert change.share(0, 1) == 0.5
    assert change.share(2, 0) == 0.2
    assert math.isnan(Change({"a": (0.0, 1.0, 0.0)}).share(2, 0))


def test_logits_apart():
    wanted = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert apart(wanted, wanted) == (0.0, 0.0)
    largest, divergence = apart(wanted, torch.zeros(2, 2))
    assert math.isclose(largest, math.log(3), rel_tol=1e-6)
    uniform = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert math.isclose(divergence, uniform / 2, rel_tol=1e-5)
    assert math.isclose(apart(wanted, wanted + 5.0)[1], 0.0, abs_tol=1e-6)  # a shift of all logits says nothing
