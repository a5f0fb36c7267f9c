"""Data parallel on one machine: a training stage as one process with all cores' threads, and as a process a core.

LoRA (r = 16, every linear layer) on SmolLM2-135M and Alpaca's first rows, through the public stage: Ray Train starts
the processes, which share each batch and sum their gradients over gloo. Both follow the same batches; their last
losses are shown. Tokens a second are the loop's own, starting and loading left out.

    python tests/bench/workers.py [--rows N] [--rounds N] [--base float|nf4]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

from side_by_side import alpaca

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--base", choices=("float", "nf4"), default="float")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    cores = os.cpu_count() or 1
    sides = {"threads": 1, "processes": cores}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "alpaca.jsonl"
        pairs = alpaca(given.rows)
        data.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in pairs), encoding="utf-8")
        for round_ in range(given.rounds):
            for name in list(sides) if round_ % 2 == 0 else reversed(list(sides)):
                metrics = trained(data, given.base, sides[name], cores, f"{folder}/{name}{round_}")
                speeds[name].append(metrics["tokens_per_second"])
                losses[name] = metrics["train_loss"]
                print(f"{name}: {speeds[name][-1]:.0f} tokens/s, loss {losses[name]:.4f}", flush=True)
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    result = {
        "bench": "workers",
        "base": given.base,
        "rows": given.rows,
        "one_process": round(medians["threads"], 1),
        "a_process_a_core": round(medians["processes"], 1),
        "ratio": round(medians["processes"] / medians["threads"], 3),
        "losses": {name: round(loss, 4) for name, loss in losses.items()},
    }
    print("RESULT", json.dumps(result))


def trained(data: Path, base: str, workers: int, cores: int, store: str) -> dict[str, Any]:
    """What the stage says of itself."""
    from graftline.pipelines import run
    from graftline.stages import Llm, Resources, read, train

    rows = read.Jsonl(path=str(data), prompt="{prompt}", answer="{answer}")
    stage = train.Train(
        model=Llm("smollm2-135m-instruct"),
        rows=rows,
        base=train.Nf4() if base == "nf4" else train.Float(),
        adapter=train.Lora(rank=16),
        batch_size=BATCH,
        epochs=1,
        workers=workers,
        resources=Resources(cpus=cores) if workers == 1 else None,
    )
    metrics: dict[str, Any] = run({"trained": stage}, store=store)["trained"].metrics
    return metrics


if __name__ == "__main__":
    main()
