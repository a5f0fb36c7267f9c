"""One training step of ours: its speed, its share of the machine's matrix rate, and where its time goes.

LoRA (r = 16, every linear layer) on SmolLM2-135M. `--work short` is 8 random rows of 30 to 60 tokens a step, the last
eighth of each trained; `--work alpaca` is Alpaca's first rows (GRAFTLINE_DATA, or ../shared/data). The matrix rate is
the best of products of 512 rows with the model's own weights, in bf16 or fp32, on the same threads, in the same run;
a token is counted as two products forward and two back with every frozen weight, a trained one with the head's, too.

    python tests/bench/step.py [--threads N] [--base float|nf4] [--work short|alpaca] [--profile]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

RANK, WARM = 16, 2
SHORT_ROWS, SHORTEST, LONGEST = 8, 30, 60
SHOWN = 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=6, help="counted")
    parser.add_argument("--base", choices=("float", "nf4"), default="float")
    parser.add_argument("--work", choices=("short", "alpaca"), default="short")
    parser.add_argument("--rows", type=int, default=16, help="of Alpaca, a step")
    parser.add_argument("--bin-tokens", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by the probe")
    parser.add_argument("--profile", action="store_true", help="show where the last step's time goes")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    warnings.filterwarnings("ignore")
    import torch

    from graftline.stages.lm import smollm2
    from graftline.stages.lm.load import probe_dtype
    from graftline.stages.train import Float, Lora, Nf4
    from graftline.stages.train.build import build

    torch.set_num_threads(given.threads)
    directory, dtype = smollm2.directory()[0], given.dtype or probe_dtype()
    attached = build(directory, dtype, Float() if given.base == "float" else Nf4(), Lora(rank=RANK), 0, "cpu")
    batch = SHORT_ROWS if given.work == "short" else given.rows
    count = batch * (WARM + given.steps)
    table = short_rows(count) if given.work == "short" else alpaca_rows(directory, count)
    steps = trained(attached, table, batch, given.bin_tokens, WARM + given.steps, given.profile)[WARM:]
    rate = matrix_rate()
    frozen, head = weights_of(attached.model)  # the adapter's work and attention's are left out
    floating = [4 * (each.computed * frozen + each.labels * head) / each.seconds / 1e9 for each in steps]
    result = {
        "bench": "step",
        "threads": given.threads,
        "dtype": dtype,
        "base": given.base,
        "work": given.work,
        "tokens_a_step": round(statistics.mean(each.tokens for each in steps)),
        "computed_tokens_a_step": round(statistics.mean(each.computed for each in steps)),
        "milliseconds": round(statistics.median(each.seconds for each in steps) * 1e3),
        "tokens_per_second": round(statistics.median(each.tokens / each.seconds for each in steps), 1),
        "gflops": round(statistics.median(floating)),
        "matrix_gflops": round(rate),
        "share_of_matrix_rate": round(statistics.median(floating) / rate, 3),
    }
    print("RESULT", json.dumps(result))


class Timed(NamedTuple):
    """A step.

    Args:
        tokens: of its rows; `computed`: without what rows begin with alike; `labels`: trained tokens.
    """

    tokens: int
    computed: int
    labels: int
    seconds: float


def trained(attached: Any, table: Any, batch: int, bin_tokens: int, steps: int, profiled: bool) -> list[Timed]:
    """Each step."""
    import torch

    from graftline.stages.lm.shared_prefixes import shared_prefixes
    from graftline.stages.train import AdamW, Sft, Shuffled
    from graftline.stages.train.collectives import Alone
    from graftline.stages.train.loop import Settings, collate, train
    from graftline.stages.train.source import IndexPlan

    found: list[Timed] = []
    watch = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) if profiled else None

    class Watched(IndexPlan):
        """Looks at the clock before a step and after it."""

        def next(self, step: int) -> Any:
            if watch is not None and step == steps - 1:
                watch.start()
            self.started = time.perf_counter()
            self.batch = super().next(step)
            return self.batch

        def published(self, step: int, attached: Any) -> None:
            seconds = time.perf_counter() - self.started
            rows = [table[place] for place in self.batch[0]]
            computed = 0
            for each in collate(Sft(), table, [*zip(*self.batch, strict=True)], settings):
                given = each.tensors["input_ids"], each.tensors["position_ids"]
                computed += (shared_prefixes(*given) or given)[0].numel()
            tokens = sum(len(row["input_ids"]) for row in rows)
            found.append(Timed(tokens, computed, sum(map(trained_of, rows)), seconds))

    class Silent:
        """No checkpoints, no log."""

        latest = staticmethod(lambda: nullcontext(None))
        log = save = progress = staticmethod(lambda *_, **__: None)

    plan = Watched(Shuffled().start(len(table), batch, 0), batch, steps * batch)
    settings = Settings(steps=steps, seed=0, bin_tokens=bin_tokens, eval_every=0, checkpoint_every=10**9)
    reporter: Any = Silent()
    train(attached, Sft(), AdamW(lr=1e-4), plan, table, None, settings, reporter, Alone())
    if watch is not None:
        watch.stop()
        print(watch.key_averages().table(sort_by="self_cpu_time_total", row_limit=SHOWN, max_name_column_width=50))
    return found


def trained_of(row: Any) -> int:
    return int(row["trained"][1:].sum())


def weights_of(model: Any) -> tuple[int, int]:
    """Weights of the frozen linear layers, and of the head."""
    from graftline.stages.lm.held import linear_layers

    layers = [layer for name, layer in linear_layers(model) if ".lora_" not in name]
    return sum(each.in_features * each.out_features for each in layers), model.get_output_embeddings().weight.numel()


def matrix_rate() -> float:
    """GFLOP/s."""
    import torch

    best = 0.0
    for out, into in ((1536, 576), (576, 1536), (576, 576)):
        for dtype in (torch.bfloat16, torch.float32):
            x, weight = torch.full((512, into), 0.5, dtype=dtype), torch.full((out, into), 0.5, dtype=dtype)
            for _ in range(30):
                started = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                best = max(best, 2 * 512 * out * into / (time.perf_counter() - started) / 1e9)
    return best


def short_rows(count: int) -> Any:
    import numpy as np

    draw = np.random.default_rng(0)
    rows = []
    for length in draw.integers(SHORTEST, LONGEST + 1, count):
        ids = draw.integers(10, 49_000, length).astype(np.int32)
        rows.append((ids.tolist(), (np.arange(length) >= length - length // 8).tolist()))
    return prepared(rows)


def alpaca_rows(directory: Path, count: int) -> Any:
    from graftline.stages.lm.chat import render_supervised
    from graftline.stages.lm.load import load_tokenizer

    tokenizer, rows = load_tokenizer(directory), []
    data = Path(os.environ.get("GRAFTLINE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    for line in (data / "alpaca" / "alpaca.jsonl").read_text(encoding="utf-8").splitlines()[: 2 * count]:
        row = json.loads(line)
        asked = f"{row['instruction']}\n{row['input']}".strip()
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
        if row["output"].strip() and len(rows) < count:
            rows.append(render_supervised(tokenizer, messages))
    return prepared(rows)


def prepared(rows: list[tuple[list[int], list[bool]]]) -> Any:
    import pyarrow as pa

    from graftline.stages.train.prepared import PreparedRows

    table = {
        "id": [f"r{index:05d}" for index in range(len(rows))],
        "input_ids": pa.array([ids for ids, _ in rows], pa.list_(pa.int32())),
        "trained": pa.array([mask for _, mask in rows], pa.list_(pa.bool_())),
    }
    return PreparedRows(pa.table(table))


if __name__ == "__main__":
    main()
