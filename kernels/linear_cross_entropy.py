"""Log-probabilities of tokens straight from hidden states: log softmax(W h)[label], and the entropy, in chunks.

Logits are never all there: a chunk of rows takes so many bytes, is turned into its own gradient where it lies, and goes
back through W at once. What flows back to a hidden state is the unit gradient of its one log-probability, computed on
the way forward, times what comes from above, so any loss of log-probabilities has its gradient. A head that trains is
refused nothing: its logits are computed again on the way back, since W's gradient sums over rows.

SmolLM2-135M's head (49,152 tokens of 576 numbers), 128 rows, bf16 with AMX, forward and back on one thread: 43 ms of
processor time instead of 76 for `cross_entropy` on fp32 logits. The softmax of a few rows at a time, within the
processor's cache, takes 9.0 of it, and 15.3 of all rows at once [measured].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from graftline.kernels.twin import compiled, jit, tl

Entropy = Literal["no", "value", "trained"]
"""Whether the entropy is computed, and whether it has a gradient, which takes one more product a chunk."""
BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}
"""Of a chunk's logits. On a CPU 256 rows take 148 ms in chunks of 32, 94 of 64, 76 of 128 and 74 at once [measured]; on
a GPU it is not measured yet."""
EVEN = 32
"""A multiple of so many rows is cut into chunks that are, too: on a CPU oneDNN compiles a product anew for another
number of rows, which takes 12 ms with a head of 49,152 tokens [measured]."""
CACHE = 1 << 20
"""Bytes of fp32 rows whose softmax is computed at a time on a CPU."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, entropy: Entropy = "no", chunk_bytes: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Each row's log-probability of its label, and the entropy of all labels, both [rows] in fp32.

    Args:
        hidden: h [rows, n]; it gets a gradient.
        weight: W [labels, n], in the dtype of `hidden`; it gets a gradient where it trains.
        labels: [rows].
        chunk_bytes: of the logits that are there at a time (None: BYTES).
    """
    # A head that trains is multiplied with again on the way back, the others' gradients are there by then.
    ahead = torch.is_grad_enabled() and hidden.requires_grad and not weight.requires_grad
    size = chunk_bytes or BYTES.get(hidden.device.type, BYTES["cpu"])
    logprobs, found = _LinearCrossEntropy.apply(hidden, weight, labels, entropy, size, ahead)
    return logprobs, found if entropy != "no" else None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, entropy: Entropy, size: int, ahead: bool
    ) -> tuple[Tensor, Tensor]:
        rows = len(hidden)
        logprobs, entropies = (hidden.new_empty(rows, dtype=_wide(hidden.dtype)) for _ in range(2))
        by_entropy = ahead and entropy == "trained"
        backs = [torch.empty_like(hidden) for _ in range(1 + by_entropy)] if ahead else []
        for chunk, logits in _logits(hidden, weight, size):
            other = torch.empty_like(logits) if by_entropy else None
            row_softmax(logits, labels[chunk], logprobs[chunk], entropies[chunk], ahead, entropy != "no", other)
            for back, each in zip(backs, (logits, other), strict=False):
                if each is not None:
                    torch.mm(each, weight, out=back[chunk])
        ctx.save_for_backward(*(backs if ahead else (hidden, weight, labels)))
        ctx.entropy, ctx.size, ctx.ahead = entropy, size, ahead
        if entropy != "trained":
            ctx.mark_non_differentiable(entropies)
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        given = (of_logprobs, of_entropies if ctx.entropy == "trained" else None)
        if ctx.ahead:
            backs = ctx.saved_tensors
            parts = [back * above[:, None] for back, above in zip(backs, given, strict=False) if above is not None]
            of_hidden = sum(parts[1:], parts[0]).to(backs[0].dtype) if parts else None
            return of_hidden, None, None, None, None, None
        hidden, weight, labels = ctx.saved_tensors
        of_hidden, of_weight = _through(hidden, weight, labels, given, ctx.size, *ctx.needs_input_grad[:2])
        return of_hidden, of_weight, None, None, None, None


def _through(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    given: tuple[Tensor | None, Tensor | None],
    size: int,
    for_hidden: bool,
    for_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """What flows back to hidden states and to a head that trains, from logits computed again."""
    of_logprobs, of_entropies = given
    of_hidden = torch.empty_like(hidden) if for_hidden else None
    of_weight = torch.zeros_like(weight) if for_weight else None
    unused = hidden.new_empty(2, len(hidden), dtype=_wide(hidden.dtype))
    for chunk, logits in _logits(hidden, weight, size):
        other = None if of_entropies is None else torch.empty_like(logits)
        row_softmax(logits, labels[chunk], unused[0, chunk], unused[1, chunk], True, other is not None, other)
        if of_logprobs is None:
            logits.zero_()
        else:
            logits.mul_(of_logprobs[chunk, None].to(logits.dtype))
        if other is not None and of_entropies is not None:
            logits.addcmul_(other, of_entropies[chunk, None].to(logits.dtype))
        if of_hidden is not None:
            torch.mm(logits, weight, out=of_hidden[chunk])
        if of_weight is not None:
            of_weight.addmm_(logits.t(), hidden[chunk])
    return of_hidden, of_weight


def row_softmax(
    logits: Tensor,
    labels: Tensor,
    logprobs: Tensor,
    entropies: Tensor,
    gradient: bool,
    entropy: bool,
    by_entropy: Tensor | None,
) -> None:
    """Fill in log-probabilities and entropies; turn logits into the log-probabilities' gradient.

    Args:
        logits: [rows, labels]; with `gradient` overwritten by one-hot(label) − p.
        entropy: whether entropies are wanted.
        by_entropy: like the logits, filled with the entropies' gradient −p · (log p + H).
    """
    fill = row_softmax_triton if compiled(logits) else row_softmax_torch
    fill(logits, labels, logprobs, entropies, gradient, entropy, by_entropy)


def row_softmax_torch(
    logits: Tensor,
    labels: Tensor,
    logprobs: Tensor,
    entropies: Tensor,
    gradient: bool,
    entropy: bool,
    by_entropy: Tensor | None,
) -> None:
    wide = _wide(logits.dtype)
    step = max(1, CACHE // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), step):
        own = slice(start, start + step)
        label = labels[own, None]
        each = logits[own].to(wide, copy=True)
        most = each.amax(1, keepdim=True)
        at_label = each.gather(1, label)
        each.sub_(most).exp_()
        total = each.sum(1, keepdim=True)
        logprobs[own] = (at_label - most - total.log())[:, 0]
        if entropy:
            each.mul_(total.reciprocal())
            found = torch.special.entr(each)  # −p log p, 0 at 0
            entropies[own] = found.sum(1)
            if by_entropy is not None:
                by_entropy[own] = found.addcmul_(each, entropies[own, None], value=-1)
        if gradient:
            each.mul_(-1 if entropy else -total.reciprocal()).scatter_add_(1, label, torch.ones_like(at_label))
            logits[own] = each


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(hidden: Tensor, weight: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """A chunk of rows after another and its logits, which the next one's overwrite: memory touched for the first
    time costs more than the product, 55 ms instead of 12 for 256 rows on a virtual machine [measured]."""
    held = None
    for chunk in _chunks(len(hidden), len(weight), hidden.element_size(), size):
        rows = chunk.stop - chunk.start
        if held is None or len(held) < rows:
            held = hidden.new_empty(rows, len(weight))
        yield chunk, torch.mm(hidden[chunk], weight.t(), out=held[:rows])


def _chunks(rows: int, labels: int, element: int, size: int) -> Iterator[slice]:
    """Rows in chunks of like size, whose logits take no more than so many bytes (one row at least)."""
    most = max(1, size // (labels * element))
    unit = EVEN if rows % EVEN == 0 and most >= EVEN else 1
    units, count = rows // unit, -(-rows // (most // unit * unit))
    for index in range(count):
        yield slice(units * index // count * unit, units * (index + 1) // count * unit)


COLUMNS = 4096
"""Labels of one pass of a program over its row."""


def row_softmax_triton(
    logits: Tensor,
    labels: Tensor,
    logprobs: Tensor,
    entropies: Tensor,
    gradient: bool,
    entropy: bool,
    by_entropy: Tensor | None,
) -> None:
    """`row_softmax_torch`, a row a program, read twice: largest, sum and entropy in one pass, the gradient in place in
    another."""
    rows, count = logits.shape
    columns = min(COLUMNS, max(16, 1 << (count - 1).bit_length()))
    _softmax[(rows,)](
        *(logits, labels, logprobs, entropies, logits if by_entropy is None else by_entropy, count),
        GRADIENT=gradient, ENTROPY=entropy, BY_ENTROPY=by_entropy is not None, COLUMNS=columns, num_warps=8,
    )  # fmt: skip


@jit
def _softmax(  # type: ignore[no-untyped-def]
    logits, labels, logprobs, entropies, by_entropy, count,
    GRADIENT: tl.constexpr, ENTROPY: tl.constexpr, BY_ENTROPY: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * count
    label = tl.load(labels + row)
    at_label = tl.load(logits + label).to(tl.float32)
    column = tl.arange(0, COLUMNS)
    most, total, weighted = -float("inf"), 0.0, 0.0
    for start in range(0, count, COLUMNS):
        inside = start + column < count
        each = tl.load(logits + start + column, mask=inside, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(most, tl.max(each, axis=0))
        share = tl.exp(each - larger)
        shrunk = tl.exp(most - larger)
        total = total * shrunk + tl.sum(share, axis=0)
        if ENTROPY:
            weighted = weighted * shrunk + tl.sum(share * tl.where(inside, each, 0.0), axis=0)
        most = larger
    normaliser = most + tl.log(total)
    tl.store(logprobs + row, at_label - normaliser)
    found = normaliser - weighted / total
    if ENTROPY:
        tl.store(entropies + row, found)
    if GRADIENT:
        for start in range(0, count, COLUMNS):
            place = start + column
            inside = place < count
            each = tl.load(logits + place, mask=inside, other=0.0).to(tl.float32) - normaliser
            share = tl.exp(each)
            if BY_ENTROPY:
                back = -share * (each + found)
                tl.store(by_entropy + row * count + place, back.to(logits.dtype.element_ty), mask=inside)
            back = tl.where(place == label, 1.0, 0.0) - share
            tl.store(logits + place, back.to(logits.dtype.element_ty), mask=inside)
