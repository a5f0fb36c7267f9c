"""Rotary positions: (x₁, x₂) ↦ (x₁ cos − x₂ sin, x₂ cos + x₁ sin) for the halves of every head, and back.

The torch reference makes no rotated copy: three passes where transformers' has five, and as many on the way back. Nine
query and three key heads of 64, 352 tokens, forward and backward on one thread: 0.55 ms of processor time instead of
0.97 ms in bf16, 0.53 instead of 1.32 ms in fp32 [measured].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftline.kernels.twin import blocks, compiled, jit, tl


def rope(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys turned to their positions; both get gradients.

    Args:
        query: [rows, tokens, heads, size]; `key`: [rows, tokens, key heads, size].
        cos: [rows or 1, tokens, size], both halves of which are the same; `sin` likewise.
    """
    turned: tuple[Tensor, Tensor] = _Rope.apply(query, key, cos, sin)
    return turned


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        turned = turned_triton if compiled(query) else turned_torch
        return turned(query, cos, sin), turned(key, cos, sin)

    @staticmethod
    def backward(ctx: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        turned = turned_triton if compiled(of_query) else turned_torch
        return turned(of_query, cos, sin, back=True), turned(of_key, cos, sin, back=True), None, None


def turned_torch(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Each head turned, forwards or back."""
    half, sign = x.shape[-1] // 2, -1 if back else 1
    cos, sin = cos[:, :, None], sin[:, :, None, :half]
    output = x * cos
    output[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    output[..., half:].addcmul_(x[..., :half], sin, value=sign)
    return output


HEADS = 16
"""Heads of one program."""


def turned_triton(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """`turned_torch`, a token and up to 16 heads a program."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    rows, tokens, heads, size = x.shape
    output = torch.empty_like(x)
    _turn[(rows * tokens, blocks(heads, HEADS))](
        *(x, cos, sin, output, tokens if len(cos) == 1 else rows * tokens, heads, size // 2, -1.0 if back else 1.0),
        HEADS=HEADS, HALF=max(16, 1 << (size // 2 - 1).bit_length()),
    )  # fmt: skip
    return output


@jit
def _turn(x, cos, sin, output, positions, heads, half, sign, HEADS: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    place = tl.arange(0, HALF)
    angle = (token % positions) * half * 2 + place
    by_cos = tl.load(cos + angle, mask=place < half, other=0.0).to(tl.float32)[None, :]
    by_sin = tl.load(sin + angle, mask=place < half, other=0.0).to(tl.float32)[None, :] * sign
    first = (token * heads + head)[:, None] * half * 2 + place[None, :]
    inside = (head < heads)[:, None] & (place < half)[None, :]
    one = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(x + first + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + first, (one * by_cos - other * by_sin).to(output.dtype.element_ty), mask=inside)
    tl.store(output + first + half, (other * by_cos + one * by_sin).to(output.dtype.element_ty), mask=inside)
