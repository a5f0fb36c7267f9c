"""Each kernel against float64, then against the roofline and its peers: rows for `kernels/MEASURED.md`.

The roofline is this machine's own, measured in the same run: the time a kernel's bytes take at the bandwidth of a large
copy, or its products at the rate of a large product, whichever is longer. Peers are bitsandbytes, the plain operations,
these under torch.compile, and Liger where it has the kernel and is installed. All take turns; medians count. Without a
GPU, the references are measured at SmolLM2-135M's shapes; on one, the twins at an 8-billion model's.

    python tests/bench/kernels.py [--threads N] [--turns N] [--dtype float32] [--only nf4] [--compile]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graftline.kernels import grouped_lora, lora_linear, nf4

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
RANK = 16


@dataclass(frozen=True)
class Case:
    """One kernel at one shape.

    Args:
        name: kernel and shape.
        own: what is called, and answers with what is checked.
        exact: the same in float64.
        peers: name → the same by others.
        bytes: that have to move; `flops`: of its products.
    """

    name: str
    own: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    peers: Mapping[str, Callable[[], Tensor]]
    bytes: float
    flops: float = 0.0
    error: float = field(default=float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a peer (it takes minutes on a CPU)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, given.dtype)
    bandwidth, rate = limits(device, dtype)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{given.threads} threads of {processor()}"
    print(f"{datetime.date.today()}, {where}, {versions()}; {bandwidth / 1e9:.0f} GB/s, {rate / 1e9:.0f} GFLOP/s\n")
    print("| kernel | error | ours, ms | of the roofline | peers, ms |\n|---|---|---|---|---|")
    result: dict[str, Any] = {"bench": "kernels", "device": where, "dtype": given.dtype, "rows": {}}
    for case in cases(device, dtype):
        if given.only not in case.name:
            continue
        peers = dict(case.peers)
        if given.compile and "plain" in peers:
            peers["torch.compile"] = torch.compile(peers["plain"])
        exact = case.exact()
        error = float((case.own().double() - exact).norm() / exact.norm())
        times = measured({"own": case.own, **peers}, given.turns, device)
        bound = max(case.bytes / bandwidth, case.flops / rate) * 1e3
        others = ", ".join(f"{name} {value:.3f}" for name, value in times.items() if name != "own")
        print(f"| {case.name} | {error:.1e} | {times['own']:.3f} | {bound / times['own']:.0%} | {others} |", flush=True)
        result["rows"][case.name] = {"error": error, "roofline_ms": bound, **times}
    print("\nRESULT", json.dumps(result))


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Every kernel at the shapes that training and serving give it."""
    hidden, inner, rows = (4096, 14336, 2048) if device == "cuda" else (576, 1536, 352)
    yield from quantised(device, dtype, inner, hidden, rows)
    yield from stacked(device, dtype, hidden, inner, rows)
    yield from mixed(device, dtype, hidden, rows)


def quantised(device: str, dtype: torch.dtype, out: int, into: int, rows: int) -> Iterator[Case]:
    """NF4 with double quantisation."""
    import bitsandbytes.functional as peer

    weight = torch.randn(out, into, device=device)
    held, size = nf4.quantise(weight), weight.numel()
    packed, state = peer.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    state.dtype = dtype
    held_bytes, wide = 0.516 * size, torch.empty(0, dtype=dtype).element_size()

    def dense() -> Tensor:
        return peer.dequantize_4bit(packed, state)

    exact = nf4.dequantise(held).double()
    yield Case(
        f"nf4 quantise {out}×{into}",
        lambda: nf4.dequantise(nf4.quantise(weight)),
        lambda: weight.double(),
        {"bitsandbytes": lambda: peer.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")[0]},
        4 * size + held_bytes,
    )
    yield Case(
        f"nf4 dequantise {out}×{into}",
        lambda: nf4.dequantise(held, dtype),
        lambda: exact,
        {"bitsandbytes": dense, "plain": lambda: nf4.dequantise_torch(held, dtype)},
        held_bytes + wide * size,
    )
    for tokens in (1, 16, 64, rows):
        x, upstream = (torch.randn(tokens, width, device=device).to(dtype) for width in (into, out))
        moved, flops = held_bytes + wide * tokens * (into + out), 2.0 * tokens * size
        peers: dict[str, Callable[[], Tensor]] = {"dequantise, multiply": lambda x=x: x @ dense().t()}
        back: dict[str, Callable[[], Tensor]] = {"dequantise, multiply": lambda g=upstream: g @ dense()}
        forward: Any = lambda x=x: nf4.nf4_linear(x, held)  # noqa: E731
        backward: Any = lambda g=upstream: nf4.nf4_linear_backward(g, held)  # noqa: E731
        if device == "cuda":  # the twins, whatever the dispatcher says: where it should go over is to be found out
            peers["dispatched"], back["dispatched"] = forward, backward
            forward = lambda x=x: nf4.nf4_linear_triton(x, held, None, None, None, 1.0)  # noqa: E731
            backward = lambda g=upstream: nf4.nf4_linear_backward_triton(g, held, None, None)  # noqa: E731
        yield Case(f"nf4 linear, {tokens} rows", forward, lambda x=x: x.double() @ exact.t(), peers, moved, flops)
        yield Case(
            f"nf4 linear back, {tokens} rows", backward, lambda g=upstream: g.double() @ exact, back, moved, flops
        )


def stacked(device: str, dtype: torch.dtype, hidden: int, inner: int, rows: int) -> Iterator[Case]:
    """LoRA on layers that share an input, forward and back."""

    def together(x: Tensor, parts: Any) -> tuple[Tensor, ...]:
        layers = [lora_linear.LoraLayer(lambda w=w: w, None, a, b, 2.0) for w, a, b in parts]
        return lora_linear.lora_linear(x, layers)

    def apart(x: Tensor, parts: Any) -> tuple[Tensor, ...]:
        return tuple(together(x, [part])[0] for part in parts)

    def plain(x: Tensor, parts: Any) -> tuple[Tensor, ...]:
        return tuple(x @ w.t() + 2.0 * ((x @ a.t()) @ b.t()) for w, a, b in parts)

    for name, outs in {"q, k, v": (hidden, hidden // 3, hidden // 3), "gate, up": (inner, inner)}.items():
        shapes = [((out, hidden), (RANK, hidden), (out, RANK)) for out in outs]
        tensors = [[torch.randn(shape, device=device).to(dtype) for shape in layer] for layer in shapes]
        x = torch.randn(rows, hidden, device=device).to(dtype)
        upstream = [torch.randn(rows, out, device=device).to(dtype) for out in outs]

        def trained(
            way: Any, kind: torch.dtype, tensors: Any = tensors, x: Any = x, upstream: Any = upstream
        ) -> Tensor:
            given = x.to(kind, copy=True).requires_grad_()
            factors = [
                [w.to(kind)] + [each.to(kind, copy=True).requires_grad_() for each in (a, b)] for w, a, b in tensors
            ]
            torch.autograd.backward(way(given, factors), [each.to(kind) for each in upstream])
            assert given.grad is not None
            return given.grad

        yield Case(
            f"lora_linear {name}, {rows} rows, forward and back",
            lambda t=trained: t(together, dtype),
            lambda t=trained: t(plain, torch.float64),
            {"one by one": lambda t=trained: t(apart, dtype), "plain": lambda t=trained: t(plain, dtype)},
            2.0 * x.element_size() * (sum(outs) * hidden + rows * (hidden + sum(outs))),
            4.0 * rows * sum(outs) * (hidden + RANK),
        )


def mixed(device: str, dtype: torch.dtype, hidden: int, rows: int) -> Iterator[Case]:
    """Eight adapters of two ranks in one batch."""
    count = 8
    factors = {}
    for slot in range(count):
        rank = 8 + 8 * (slot % 2)
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rank, hidden), (hidden, rank)))
        factors[slot] = grouped_lora.Factors(a, b, 2.0)
    for name, slots in {
        "in turn": [index % count for index in range(32)],
        "one after the other": [index * count // rows for index in range(rows)],
    }.items():
        tokens, which = len(slots), torch.tensor(slots, device=device)
        segments = grouped_lora.segment(slots, device)
        x = torch.randn(tokens, hidden, device=device).to(dtype)

        def own(x: Tensor = x, segments: Any = segments) -> Tensor:
            output = torch.zeros(len(x), hidden, dtype=dtype, device=device)
            return grouped_lora.grouped_lora(output, x, factors, segments)

        def one_by_one(kind: torch.dtype, x: Tensor = x, slots: Any = slots) -> Tensor:
            parts = zip((factors[slot] for slot in slots), x.to(kind), strict=True)
            return torch.stack([own.scale * (own.b.to(kind) @ (own.a.to(kind) @ each)) for own, each in parts])

        def every(x: Tensor = x, which: Tensor = which) -> Tensor:
            updates = [own.scale * ((x @ own.a.t()) @ own.b.t()) for own in factors.values()]
            return torch.stack(updates)[which, torch.arange(len(x), device=device)]

        yield Case(
            f"grouped_lora, {count} adapters, {tokens} tokens {name}",
            own,
            lambda exact=one_by_one: exact(torch.float64),
            {"token by token": lambda plain=one_by_one: plain(dtype), "every adapter, then a choice": every},
            x.element_size() * (3.0 * tokens * hidden + count * 2 * 12 * hidden),
            2.0 * tokens * 2 * 12 * hidden,
        )


def measured(calls: Mapping[str, Callable[[], Tensor]], turns: int, device: str) -> dict[str, float]:
    """Median milliseconds of each; the calls take turns, so that another process's burst meets all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 2):
        for name, call in calls.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:  # kernels are chosen and compiled in the first ones
                seconds[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(each) for name, each in seconds.items()}


def limits(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second of a large copy, operations a second of the best of some large products."""
    source = torch.ones(2**30 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = min(measured({"copy": lambda: target.copy_(source)}, 5, device).values()) / 1e3
    rates = []
    for rows, out, into in [(8192, 8192, 8192)] if device == "cuda" else [(512, 1536, 576), (512, 576, 1536)]:
        x, weight = (
            torch.ones(rows, into, dtype=dtype, device=device),
            torch.ones(out, into, dtype=dtype, device=device),
        )
        seconds = measured({"product": lambda x=x, weight=weight: x @ weight.t()}, 20, device)["product"] / 1e3
        rates.append(2 * rows * out * into / seconds)
    return 2 * source.numel() / copied, max(rates)


def versions() -> str:
    """Of what computes."""
    found = []
    for name in ("torch", "triton", "bitsandbytes", "liger-kernel"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def processor() -> str:
    """The processor's name, and what it multiplies bf16 with."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        text = file.read()
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    units = "AMX" if "amx_bf16" in text else "AVX512-BF16" if "avx512_bf16" in text else "no bf16 units"
    return f"{name or platform.processor()} ({units})"


if __name__ == "__main__":
    main()
