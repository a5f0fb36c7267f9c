"""The principal part of a weight: its largest singular components, as two factors."""

from __future__ import annotations

import torch
from torch import Tensor

from graftline.stages.rows import derived_seed

ITERATIONS = 16
"""Power iterations of the randomised decomposition (of PiSSA's authors: enough): 2 s for a model of 135M weights."""


def principal(name: str, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] whose product is the weight's principal part, the root of each singular value on
    either side; fp32, computed in fp32.

    The factors are numbers that bf16 has, so that they can be taken from a weight, trained on and subtracted again in
    any number format without a rounding coming in between.

    Args:
        name: the layer's, which seeds the decomposition.
        weight: [out, in], float.
        rank: at most the smaller of the two.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(0, name))
        left, values, right = torch.svd_lowrank(weight.float(), q=rank, niter=ITERATIONS)
    root = values.sqrt()
    a, b = (right * root).T, left * root
    return a.to(torch.bfloat16).float().contiguous(), b.to(torch.bfloat16).float().contiguous()
