"""Training over NF4, ours against the stock parts, in the same process on the same rows.

Both train a LoRA (r = 16, every linear layer) on SmolLM2-135M in NF4 with double quantisation, on 8 tickets of the
quickstart a step, the answers trained. Stock is transformers' `BitsAndBytesConfig`, PEFT as it comes, padded
batches, the model's own loss and torch's AdamW; it is measured in bf16 and in fp32, and the faster one counts. Tokens
are those of the rows, padding left out. The turns alternate, so that another process's burst meets both.

    python tests/bench/nf4_training.py [--threads N] [--steps N] [--dtype float32]

`--dtype float32` is what a processor without bf16 units would compare.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftline.stages.train.prepared import PreparedRows

TICKETS = Path(__file__).resolve().parents[2] / "examples" / "tickets.jsonl"
BATCH, RANK = 8, 16
WARM = 2
"""Steps that are not counted: kernels are chosen and memory is found in them."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=10, help="counted, of each")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of both (default: the faster, of each)")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # bitsandbytes has its own
    warnings.filterwarnings("ignore")
    import torch

    from graftline.stages.lm import smollm2
    from graftline.stages.lm.load import probe_dtype, quietly

    torch.set_num_threads(given.threads)
    directory = smollm2.directory()[0]
    dtype = given.dtype or probe_dtype()
    names = (given.dtype,) if given.dtype else ("bfloat16", "float32")
    with quietly():
        peers = {name: stock(directory, name) for name in names}
        speeds = measured(directory, dtype, peers, WARM + given.steps)
    figures = {name: statistics.median(each[WARM:]) for name, each in speeds.items()}
    peer = max(peers, key=lambda name: figures[name])
    result = {
        "bench": "nf4_training",
        "threads": given.threads,
        "dtype": dtype,
        "tokens_per_second": round(figures["own"], 1),
        "stock_tokens_per_second": round(figures[peer], 1),
        "stock_dtype": peer,
        "ratio": round(figures["own"] / figures[peer], 3),
    }
    print("RESULT", json.dumps(result))


def rows(directory: Path) -> PreparedRows:
    """The quickstart's tickets as the trainer reads them."""
    import pyarrow as pa

    from graftline.stages.lm.chat import render_supervised
    from graftline.stages.lm.load import load_tokenizer
    from graftline.stages.train.prepared import PreparedRows

    tokenizer = load_tokenizer(directory)
    tickets = [json.loads(line) for line in TICKETS.read_text(encoding="utf-8").splitlines()]
    made = []
    for index, ticket in enumerate(tickets):
        turns = [("user", ticket["text"]), ("assistant", ticket["queue"])]
        ids, trained = render_supervised(tokenizer, [{"role": role, "content": text} for role, text in turns])
        made.append({"id": f"t{index:03d}", "input_ids": ids, "trained": trained})
    kinds = {"id": pa.string(), "input_ids": pa.list_(pa.int32()), "trained": pa.list_(pa.bool_())}
    return PreparedRows(pa.Table.from_pylist(made, schema=pa.schema(kinds)))


def measured(directory: Path, dtype: str, peers: Mapping[str, Iterator[int]], steps: int) -> dict[str, list[float]]:
    """Tokens a second of each step of our loop (`own`) and of the peers, who have their turn before each of its."""
    from graftline.stages.train import AdamW, Lora, Nf4, Sft, Shuffled, Train
    from graftline.stages.train.build import build
    from graftline.stages.train.collectives import Alone
    from graftline.stages.train.loop import Settings, train
    from graftline.stages.train.source import IndexPlan

    speeds: dict[str, list[float]] = {name: [] for name in ("own", *peers)}
    table = rows(directory)

    class Turns(IndexPlan):
        """Lets the peers go first."""

        def next(self, step: int) -> Any:
            for name, peer in peers.items():
                started = time.perf_counter()
                tokens = next(peer)
                speeds[name].append(tokens / (time.perf_counter() - started))
            self.started = time.perf_counter()
            self.batch = super().next(step)
            return self.batch

        def published(self, step: int, attached: Any) -> None:
            tokens = sum(len(table[place]["input_ids"]) for place in self.batch[0])
            speeds["own"].append(tokens / (time.perf_counter() - self.started))

    class Silent:
        """No checkpoints, no log."""

        latest = staticmethod(lambda: nullcontext(None))
        log = save = progress = staticmethod(lambda *_, **__: None)

    attached = build(directory, dtype, Nf4(), Lora(rank=RANK), 0, "cpu")
    plan = Turns(Shuffled().start(len(table), BATCH, 0), BATCH, steps * BATCH)
    settings = Settings(
        steps=steps, seed=0, bin_tokens=Train.model_fields["bin_tokens"].default, eval_every=0, checkpoint_every=10**9
    )
    reporter: Any = Silent()
    train(attached, Sft(), AdamW(lr=1e-4), plan, table, None, settings, reporter, Alone())
    return speeds


def stock(directory: Path, dtype: str) -> Iterator[int]:
    """The libraries as they come, a step at a time."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from graftline.stages.train import Shuffled
    from graftline.stages.train.source import IndexPlan

    table = rows(directory)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), quantization_config=quantisation, device_map="cpu"
    )
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)
    plan = IndexPlan(Shuffled().start(len(table), BATCH, 0), BATCH, len(table) * 100)
    for step in range(plan.steps):
        batch = [table[place] for place in plan.next(step)[0]]
        width = max(len(row["input_ids"]) for row in batch)
        ids, mask = torch.zeros(2, len(batch), width, dtype=torch.long)
        labels = torch.full((len(batch), width), -100)
        for index, row in enumerate(batch):
            tokens, trained = torch.tensor(row["input_ids"]).long(), torch.tensor(row["trained"])
            ids[index, : len(tokens)], mask[index, : len(tokens)] = tokens, 1
            labels[index, : len(tokens)] = torch.where(trained, tokens, -100)
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield int(mask.sum())


if __name__ == "__main__":
    main()
