"""Log-probabilities, entropies and every gradient are those of the whole logits, however they are cut."""

import pytest
import torch

from graftline.kernels import linear_cross_entropy as kernel
from graftline.kernels.linear_cross_entropy import linear_cross_entropy

ROWS, LABELS, SIZE = 11, 37, 8
ONE_ROW = LABELS * 8


def drawn(dtype=torch.float64, rows=ROWS, head=False):
    draw = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, SIZE, generator=draw, dtype=torch.float64)
    weight = torch.randn(LABELS, SIZE, generator=draw, dtype=torch.float64)
    labels = torch.randint(LABELS, (rows,), generator=draw)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(head), labels


def plain(hidden, weight, labels):
    whole = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    return whole.gather(1, labels[:, None])[:, 0], -(whole.exp() * whole).sum(1)


def loss(logprobs, entropies):
    """Of a kind that an objective might have: each row counts differently, and the sum is bent."""
    weights = torch.linspace(-1, 2, len(logprobs), dtype=torch.float64)
    value = torch.logsumexp(logprobs.double() * weights, 0)
    return value if entropies is None else value + (entropies.double() * weights.flip(0)).sum()


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("entropy", ["no", "value", "trained"])
@pytest.mark.parametrize("size", [1, 3 * ONE_ROW, 1 << 20])
def test_it_is_the_whole_in_chunks(entropy, size, head):
    given, exact = drawn(head=head), drawn(head=head)
    logprobs, entropies = linear_cross_entropy(*given, entropy, size)
    expected, right = plain(*exact)
    torch.testing.assert_close(logprobs, expected)
    assert (entropies is None) == (entropy == "no")
    if entropies is not None:
        torch.testing.assert_close(entropies, right)
        assert entropies.requires_grad == (entropy == "trained")
    loss(logprobs, entropies if entropy == "trained" else None).backward()
    loss(expected, right if entropy == "trained" else None).backward()
    torch.testing.assert_close(given[0].grad, exact[0].grad)
    assert (given[1].grad is not None) == head
    if head:
        torch.testing.assert_close(given[1].grad, exact[1].grad)


@pytest.mark.parametrize("head", [False, True])
def test_gradients_against_differences(head):
    hidden, weight, labels = drawn(rows=4, head=head)
    inputs = (hidden, weight) if head else (hidden,)
    assert torch.autograd.gradcheck(
        lambda hidden, weight=weight: linear_cross_entropy(hidden, weight, labels, "trained", 3 * ONE_ROW), inputs
    )


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_in_the_number_formats_it_runs_in(dtype, tolerance, head):
    given = drawn(dtype, head=head)
    exact = [each.detach().double().requires_grad_(each.requires_grad) for each in given[:2]]
    found, right = linear_cross_entropy(*given, "trained"), plain(*exact, given[2])
    for one, other in zip(found, right, strict=True):
        assert one.dtype == torch.float32 and (one - other).detach().norm() < tolerance * other.detach().norm()
    loss(*found).backward()
    loss(*right).backward()
    for one, other in zip(given[: 1 + head], exact, strict=False):
        assert one.grad.dtype == dtype and (one.grad - other.grad).norm() < tolerance * other.grad.norm()


def test_without_gradients_nothing_flows_back_through_the_head(monkeypatch):
    hidden, weight, labels = drawn()
    asked, row_softmax = [], kernel.row_softmax
    monkeypatch.setattr(kernel, "row_softmax", lambda *given: asked.append(given[4]) or row_softmax(*given))
    with torch.no_grad():
        logprobs, _ = linear_cross_entropy(hidden, weight, labels)
    assert asked and not any(asked)
    torch.testing.assert_close(logprobs, plain(hidden, weight, labels)[0].detach())
    assert not logprobs.requires_grad
    for hidden in (drawn()[0].detach(), drawn()[0][:0]):
        assert len(linear_cross_entropy(hidden.detach(), weight, labels[: len(hidden)])[0]) == len(hidden)


def test_large_logits_do_not_overflow():
    hidden, weight, labels = drawn(torch.float32)
    logprobs, entropies = linear_cross_entropy(hidden * 1e4, weight, labels, "trained")
    (logprobs.sum() + entropies.sum()).backward()
    assert logprobs.isfinite().all() and entropies.isfinite().all() and hidden.grad.isfinite().all()
    torch.testing.assert_close(logprobs.double(), plain(hidden * 1e4, weight, labels)[0], rtol=1e-4, atol=1e-2)


def test_chunks_are_of_like_size_and_within_the_bytes():
    chunks = list(kernel._chunks(10, 100, 2, 800))
    assert [chunk.stop - chunk.start for chunk in chunks] == [3, 3, 4] and chunks[-1].stop == 10
    assert [chunk.stop - chunk.start for chunk in kernel._chunks(3, 100, 2, 1)] == [1, 1, 1]
    assert list(kernel._chunks(0, 100, 2, 1)) == []


def test_rows_are_computed_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(kernel, "CACHE", 4 * LABELS * 2)
    given, exact = drawn(), drawn()
    loss(*linear_cross_entropy(*given, "trained")).backward()
    loss(*plain(*exact)).backward()
    torch.testing.assert_close(given[0].grad, exact[0].grad)


@pytest.mark.parametrize("labels", [5, 16, 300])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_the_twin_is_the_reference(monkeypatch, dtype, tolerance, labels):
    monkeypatch.setattr(kernel, "COLUMNS", 128)
    draw = torch.Generator().manual_seed(labels)
    logits = (torch.randn(6, labels, generator=draw) * 5).to(dtype)
    wanted = torch.randint(labels, (6,), generator=draw)

    def filled(fill, logits, gradient, entropy, both):
        own, found, other = logits.clone(), torch.zeros(2, 6), torch.zeros_like(logits)
        fill(own, wanted, found[0], found[1], gradient, entropy, other if both else None)
        return own.float(), found, other.float()

    for flags in ((False, False, False), (True, False, False), (False, True, False), (True, True, True)):
        found = filled(kernel.row_softmax_triton, logits, *flags)
        expected = filled(kernel.row_softmax_torch, logits.float(), *flags)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
