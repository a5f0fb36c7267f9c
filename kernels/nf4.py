"""NF4: a weight in four bits, blocks of 64 under their largest value, and these in eight bits, 256 to a block.

The bytes are bitsandbytes' own (QLoRA, appendix E, and its CPU code), so what it quantised is dequantised here and the
other way round: packed bytes, the largest values' codes, their own largest, and the offset are equal bit for bit on a
CPU; dequantised values wherever a row is a multiple of 64 wide. (With rows of other multiples of 16, bitsandbytes
0.50.2 takes the wrong blocks' largest values on processors with AVX-512.)

On a GPU the product of activations and a weight in NF4 never writes the weight: `nf4_linear_triton` and, back to the
activations, `nf4_linear_backward_triton`, both with a low-rank sum added before the one store.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from graftline.kernels.twin import blocks, compiled, jit, precision, ranks_tile, tile, tl

BLOCK, COARSE = 64, 256
"""Weights to a block, and blocks to a block of blocks."""

# fmt: off
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on
"""The 16 values of a weight, in units of its block's largest."""


@dataclass(frozen=True)
class Nf4:
    """A quantised weight.

    Args:
        packed: uint8 [⌈n/2⌉], two weights a byte, the first in the upper four bits.
        absmax: [⌈n/64⌉] the blocks' largest absolute values, fp32; with `coarse` their codes, uint8.
        shape: of the weight.
        coarse: [⌈⌈n/64⌉/256⌉] fp32, the codes' own largest; None = single quantisation.
        offset: [] fp32, the mean that was taken off before.
    """

    packed: Tensor
    absmax: Tensor
    shape: tuple[int, ...]
    coarse: Tensor | None = None
    offset: Tensor | None = None

    @property
    def rows_are_blocks(self) -> bool:
        """Whether no block lies in two rows: what the fused products need."""
        return len(self.shape) == 2 and self.shape[1] % BLOCK == 0


def quantise(weight: Tensor, double: bool = True) -> Nf4:
    """A weight in NF4.

    Args:
        weight: float, of any shape and size.
        double: quantise the blocks' largest values, too: 4.13 instead of 4.5 bits a weight.

    Raises:
        ValueError: a weight is not finite.
    """
    flat = weight.detach().reshape(-1).contiguous()
    packed, absmax = quantise_triton(flat) if compiled(flat) else quantise_torch(flat)
    if not bool(absmax.isfinite().all()):
        raise ValueError("a weight is not finite: it cannot be quantised")
    single = Nf4(packed, absmax, tuple(weight.shape))
    return _doubly(single) if double else single


def quantise_torch(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Packed bytes and the blocks' largest values of a flat weight."""
    flat = flat.float()
    full = flat.numel() // BLOCK * BLOCK
    whole, rest = flat[:full].view(-1, BLOCK), flat[full:]
    absmax = whole.abs().amax(1)
    # A zero block stays zero; the last, shorter block is divided, the others multiplied, as bitsandbytes has it.
    scaled = [(whole * absmax.clamp(min=_TINY).reciprocal()[:, None]).view(-1)]
    if rest.numel():
        last = rest.abs().amax().clamp(min=_TINY)
        absmax = torch.cat([absmax, last[None]])
        scaled.append(rest / last)
    if flat.numel() % 2:
        scaled.append(flat.new_zeros(1))
    index = torch.bucketize(torch.cat(scaled), _midpoints(flat.device), out_int32=True).to(torch.uint8)
    return (index[::2] << 4) | index[1::2], absmax


def dequantise(held: Nf4, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that a layer multiplies with, in its shape: level × largest, in fp32, rounded once."""
    return dequantise_triton(held, dtype) if compiled(held.packed) else dequantise_torch(held, dtype)


def dequantise_torch(held: Nf4, dtype: torch.dtype) -> Tensor:
    count = _count(held)
    # One look-up a byte gives both its weights. 1.4 G weights/s on one core; bitsandbytes' own code has 2.8 [measured].
    weight = _pairs(held.packed.device).index_select(0, held.packed.view(-1).int()).view(torch.float32)[:count]
    scale, full = absmax(held), count // BLOCK
    weight[: full * BLOCK].view(-1, BLOCK).mul_(scale[:full, None])
    weight[full * BLOCK :].mul_(scale[full:])
    return weight.view(held.shape).to(dtype)


def absmax(held: Nf4) -> Tensor:
    """The blocks' largest absolute values, fp32."""
    if held.coarse is None or held.offset is None:
        return held.absmax
    coarse = held.coarse.repeat_interleave(COARSE)[: held.absmax.numel()]
    return _codes(held.absmax.device)[held.absmax.int()].mul_(coarse).add_(held.offset)


_TINY = 1e-38


def _doubly(held: Nf4) -> Nf4:
    offset = held.absmax.mean()
    centred = held.absmax - offset
    padded = torch.nn.functional.pad(centred, (0, -centred.numel() % COARSE)).view(-1, COARSE)
    coarse = padded.abs().amax(1)
    # bitsandbytes finds a value's code in a table of 65,536 steps from -1 to 1, not by searching the codes themselves.
    scaled = (padded * coarse.reciprocal()[:, None]).clamp_(-1, 1)
    step = ((scaled + 1) * 0.5 * 65535 + 0.5).nan_to_num_(0).int()
    codes = _code_of_step(step.device)[step]
    codes[coarse == 0] = 0
    return replace(held, absmax=codes.view(-1)[: centred.numel()], coarse=coarse, offset=offset)


def _count(held: Nf4) -> int:
    count = 1
    for length in held.shape:
        count *= length
    return count


@functools.cache
def _midpoints(device: torch.device) -> Tensor:
    levels = torch.tensor(LEVELS, device=device)
    return (levels[:-1] + levels[1:]) / 2


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """Byte → its two levels, as one 64-bit number."""
    byte = torch.arange(256)
    pairs = torch.tensor(LEVELS)[torch.stack([byte >> 4, byte & 15], 1)]
    return pairs.view(torch.int64).view(-1).to(device)


@functools.cache
def _codes(device: torch.device) -> Tensor:
    """The 256 values of an 8-bit code: seven decades, each with twice as many steps as the one below (8-bit Optimizers
    via Block-wise Quantization, section 1.3)."""
    values = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        values += [10 ** (decade - 6) * middles, -(10 ** (decade - 6)) * middles]
    return torch.cat(values).sort().values.to(device)


@functools.cache
def _code_of_step(device: torch.device) -> Tensor:
    codes = _codes(torch.device("cpu"))
    middles = 0.5 * (codes[:-1] + codes[1:])
    steps = -1 + (2 * torch.arange(65536, dtype=torch.float32)) / 65535
    return torch.bucketize(steps, middles).to(torch.uint8).to(device)


def nf4_linear(
    x: Tensor, held: Nf4, bias: Tensor | None = None, low: Tensor | None = None, b: Tensor | None = None, s: float = 1.0
) -> Tensor:
    """x Wᵀ + bias + s · low bᵀ, without a gradient of its own.

    Args:
        x: [rows, in].
        held: W [out, in].
        bias: [out].
        low: [rows, rank]; with `b`: [out, rank].
    """
    if _fused(x, held):
        return nf4_linear_triton(x, held, bias, low, b, s)
    output = torch.nn.functional.linear(x, dequantise(held, x.dtype), bias)
    return output if low is None or b is None else output.addmm_(low, b.t(), alpha=s)


def nf4_linear_backward(gradient: Tensor, held: Nf4, low: Tensor | None = None, a: Tensor | None = None) -> Tensor:
    """gradient W + low a: what flows back to the input.

    Args:
        gradient: [rows, out].
        held: W [out, in].
        low: [rows, rank]; with `a`: [rank, in].
    """
    if _fused(gradient, held):
        return nf4_linear_backward_triton(gradient, held, low, a)
    of_x = gradient @ dequantise(held, gradient.dtype)
    return of_x if low is None or a is None else of_x.addmm_(low, a)


FUSED_ROWS = 64
"""Up to so many rows the weight is never written. Not measured yet: the traffic (0.52 bytes a weight instead of 4.5)
pays up to about 76 rows on an H100, and bitsandbytes' own fused product stops at 16 to 64 on that processor."""


def _fused(x: Tensor, held: Nf4) -> bool:
    return compiled(x) and held.rows_are_blocks and len(x) <= FUSED_ROWS


def quantise_triton(flat: Tensor) -> tuple[Tensor, Tensor]:
    """`quantise_torch`, eight blocks a program."""
    count = flat.numel()
    total = blocks(count, BLOCK)
    packed = torch.empty(blocks(count, 2), dtype=torch.uint8, device=flat.device)
    largest = torch.empty(total, dtype=torch.float32, device=flat.device)
    middles = _midpoints(flat.device)
    _quantise[(blocks(total, _BLOCKS),)](flat, packed, largest, middles, count, TINY=_TINY, ROWS=_BLOCKS)
    return packed, largest


def dequantise_triton(held: Nf4, dtype: torch.dtype) -> Tensor:
    """`dequantise_torch`, eight blocks a program."""
    weight = torch.empty(held.shape, dtype=dtype, device=held.packed.device)
    grid = (blocks(held.absmax.numel(), _BLOCKS),)
    _dequantise[grid](*_held(held, torch.float32), weight, weight.numel(), DOUBLE=_double(held), ROWS=_BLOCKS)
    return weight


def nf4_linear_triton(
    x: Tensor, held: Nf4, bias: Tensor | None, low: Tensor | None, b: Tensor | None, s: float
) -> Tensor:
    """`nf4_linear`, with the weight read as it is held. A tile is one block deep, so that the block's largest value
    multiplies the sum over it instead of 64 weights: one rounding less than dequantising first."""
    x = x.contiguous()
    (rows, into), out = x.shape, held.shape[0]
    output = torch.empty(rows, out, dtype=x.dtype, device=x.device)
    size, columns = tile(rows, most=64), tile(out, most=64)
    _linear[(blocks(rows, size), blocks(out, columns))](
        *(x, *_held(held, x.dtype), x if bias is None else bias, *_low_rank(x, low, b, 1), output),
        *(rows, out, into, s),
        DOUBLE=_double(held), BIAS=bias is not None, RANKS=_ranks(low), ROWS=size, COLUMNS=columns,
        PRECISION=precision(x),
    )  # fmt: skip
    return output


def nf4_linear_backward_triton(gradient: Tensor, held: Nf4, low: Tensor | None, a: Tensor | None) -> Tensor:
    """`nf4_linear_backward`; a program's 64 columns are one block of each row of the weight."""
    gradient = gradient.contiguous()
    (rows, out), into = gradient.shape, held.shape[1]
    of_x = torch.empty(rows, into, dtype=gradient.dtype, device=gradient.device)
    size = tile(rows, most=64)
    _backward[(blocks(rows, size), into // BLOCK)](
        *(gradient, *_held(held, gradient.dtype), *_low_rank(gradient, low, a, 0), of_x),
        *(rows, out, into),
        DOUBLE=_double(held), RANKS=_ranks(low), ROWS=size, COLUMNS=tile(out, most=64), PRECISION=precision(gradient),
    )  # fmt: skip
    return of_x


_BLOCKS = 8


def _double(held: Nf4) -> bool:
    return held.coarse is not None


def _held(held: Nf4, dtype: torch.dtype) -> tuple[Any, ...]:
    """A weight as the kernels take it; what single quantisation lacks is never read."""
    device = held.packed.device
    coarse, offset = (held.absmax if each is None else each for each in (held.coarse, held.offset))
    return held.packed, held.absmax, coarse, offset, _codes(device), _levels(device, dtype)


@functools.cache
def _levels(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(LEVELS, device=device).to(dtype)


def _low_rank(x: Tensor, low: Tensor | None, factor: Tensor | None, ranks: int) -> tuple[Any, ...]:
    """What is added at the end: low, the factor, its ranks, and its strides along ranks and columns."""
    if low is None or factor is None:
        return x, x, 0, 0, 0
    return low.contiguous(), factor, factor.shape[ranks], factor.stride(ranks), factor.stride(1 - ranks)


def _ranks(low: Tensor | None) -> int:
    return 0 if low is None else ranks_tile(low.shape[1])


@jit
def _quantise(flat, packed, largest, middles, count, TINY: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = block.to(tl.int64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    weight = tl.load(flat + place, mask=place < count, other=0.0).to(tl.float32)
    most = tl.max(tl.abs(weight), axis=1)
    short = (block + 1) * 64 > count
    divisor = tl.maximum(most, TINY)[:, None]
    whole = tl.math.div_rn(tl.full((ROWS, 1), 1.0, tl.float32), divisor)
    scaled = tl.where(short[:, None], tl.math.div_rn(weight, tl.broadcast_to(divisor, (ROWS, 64))), weight * whole)
    index = tl.zeros((ROWS, 64), tl.int32)
    for each in tl.static_range(15):
        index += (scaled > tl.load(middles + each)).to(tl.int32)
    first, second = tl.split(tl.reshape(index, (ROWS, 32, 2)))
    byte = block.to(tl.int64)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(packed + byte, ((first << 4) | second).to(tl.uint8), mask=byte < (count + 1) // 2)
    tl.store(largest + block, tl.where(short, tl.maximum(most, TINY), most), mask=block * 64 < count)


@jit
def _dequantise(packed, absmax, coarse, offset, codes, levels, weight, count, DOUBLE: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    block = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    byte = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    level = _level(packed + byte, byte < (count + 1) // 2, levels)
    scale = _scale(block, block * 64 < count, absmax, coarse, offset, codes, DOUBLE)
    place = block[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(weight + place, (level * scale[:, None]).to(weight.dtype.element_ty), mask=place < count)


@jit
def _linear(  # type: ignore[no-untyped-def]
    x, packed, absmax, coarse, offset, codes, levels, bias, low, factor, ranks, by_rank, by_column, output,
    rows, out, into, s,
    DOUBLE: tl.constexpr, BIAS: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    here, there = row < rows, column < out
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(0, into // 64):
        given = tl.load(x + row[:, None] * into + block * 64 + tl.arange(0, 64)[None, :], mask=here[:, None], other=0.0)
        byte = column[:, None] * (into // 2) + block * 32 + tl.arange(0, 32)[None, :]
        level = _level(packed + byte, there[:, None], levels)
        scale = _scale(column * (into // 64) + block, there, absmax, coarse, offset, codes, DOUBLE)
        total += tl.dot(given, tl.trans(level), input_precision=PRECISION) * scale[None, :]
    if RANKS > 0:
        total += s * _product(low, factor, ranks, by_rank, by_column, row, here, column, there, RANKS, PRECISION)
    if BIAS:
        total += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)[None, :]
    place = output + row[:, None] * out + column[None, :]
    tl.store(place, total.to(output.dtype.element_ty), mask=here[:, None] & there[None, :])


@jit
def _backward(  # type: ignore[no-untyped-def]
    gradient, packed, absmax, coarse, offset, codes, levels, low, factor, ranks, by_rank, by_column, of_x,
    rows, out, into,
    DOUBLE: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    here, block = row < rows, tl.program_id(1)
    total = tl.zeros((ROWS, 64), tl.float32)
    for start in range(0, out, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        there = column < out
        given = tl.load(gradient + row[:, None] * out + column[None, :], mask=here[:, None] & there[None, :], other=0.0)
        byte = column[:, None] * (into // 2) + block * 32 + tl.arange(0, 32)[None, :]
        level = _level(packed + byte, there[:, None], levels)
        scale = _scale(column * (into // 64) + block, there, absmax, coarse, offset, codes, DOUBLE)
        scaled = (given.to(tl.float32) * scale[None, :]).to(level.dtype)
        total += tl.dot(scaled, level, input_precision=PRECISION)
    column = (block * 64 + tl.arange(0, 64)).to(tl.int64)
    there = column < into
    if RANKS > 0:
        total += _product(low, factor, ranks, by_rank, by_column, row, here, column, there, RANKS, PRECISION)
    place = of_x + row[:, None] * into + column[None, :]
    tl.store(place, total.to(of_x.dtype.element_ty), mask=here[:, None] & there[None, :])


@jit
def _level(byte, inside, levels):  # type: ignore[no-untyped-def]
    """The levels of some bytes' weights, twice as wide."""
    pair = tl.load(byte, mask=inside, other=0).to(tl.int32)
    return tl.interleave(tl.load(levels + (pair >> 4)), tl.load(levels + (pair & 15)))


@jit
def _scale(block, inside, absmax, coarse, offset, codes, DOUBLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Some blocks' largest values."""
    if DOUBLE:
        code = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
        scale = tl.load(codes + code) * tl.load(coarse + block // 256, mask=inside, other=0.0) + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=inside, other=0.0)
    return scale


@jit
def _product(  # type: ignore[no-untyped-def]
    low, factor, ranks, by_rank, by_column, row, here, column, there, RANKS: tl.constexpr, PRECISION: tl.constexpr
):
    """low times factor, for these rows and columns."""
    rank = tl.arange(0, RANKS)
    inside = rank < ranks
    left = tl.load(low + row[:, None] * ranks + rank[None, :], mask=here[:, None] & inside[None, :], other=0.0)
    place = factor + rank[:, None] * by_rank + column[None, :] * by_column
    right = tl.load(place, mask=inside[:, None] & there[None, :], other=0.0)
    return tl.dot(left, right, input_precision=PRECISION)
