"""Our side of `train.py`: one job (a JSON file, see there) trained in this process, its figures as one JSON line.

The loop is Train's, with Train's defaults and a worker's environment; only its checkpoints and its log are left out.
Of several workers (`workers` in the job), which share each batch as Train's do, this is the first and starts the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers.memory import peak_kib

from graftline.pipelines.context import set_threads

PACKAGES = ("torch", "peft", "transformers", "bitsandbytes")
SHOWN = ("loss", "logprob_chosen", "margin")


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    workers, rank = job["workers"], int(os.environ.get("RANK", 0))
    set_threads(job["threads"] // workers)
    warnings.filterwarnings("ignore")
    from graftline.stages.lm.load import probe_dtype, quietly
    from graftline.stages.train.collectives import Alone, ProcessGroup, Ranks

    dtype = job["dtype"] or probe_dtype()
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    ranks: Ranks = Alone()
    if workers > 1:
        import torch.distributed as distributed

        others = [
            subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {"RANK": str(other)}, stdout=sys.stderr)
            for other in range(1, workers if rank == 0 else 1)
        ]
        meeting = f"file://{job['rows']}.{os.getppid() if rank else os.getpid()}"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
        ranks = ProcessGroup()
    with quietly():
        seconds, numbers = trained(job, dtype, rows, ranks)
    peak = sum(ranks.gather(peak_kib()))
    if workers > 1:
        distributed.destroy_process_group()
        if any(each.wait() for each in others):
            sys.exit("another worker failed")
    print(
        json.dumps(
            {
                "seconds": seconds,
                "numbers": numbers,
                "peak_kib": peak,
                "settings": {"dtype": dtype},
                "versions": {name: version(name) for name in PACKAGES},
            }
        )
    )


def trained(
    job: dict[str, Any], dtype: str, rows: list[dict[str, Any]], ranks: Any
) -> tuple[float, list[dict[str, float]]]:
    """Seconds of the counted steps, and what each step logs."""
    from graftline.stages.train import AdamW, Dpo, Float, Lora, Nf4, Sft, Train
    from graftline.stages.train.build import build
    from graftline.stages.train.loop import Settings, train
    from graftline.stages.train.plugs import Drawn
    from graftline.stages.train.source import IndexPlan

    numbers: list[dict[str, float]] = []
    clock: list[float] = []

    class InOrder(Drawn):
        """The rows as they come."""

        def next_batch(self, step: int) -> tuple[list[int], list[float]]:
            return list(range(step * job["batch"], (step + 1) * job["batch"])), [1.0] * job["batch"]

    class Timed(IndexPlan):
        """Looks at the clock after the last warm step and after the last."""

        def published(self, step: int, attached: Any) -> None:
            if step in (job["warm"], self.steps):
                clock.append(time.perf_counter())

    class Logged:
        """No checkpoints; the log is kept."""

        latest = staticmethod(lambda: nullcontext(None))
        save = progress = staticmethod(lambda *_, **__: None)

        @staticmethod
        def log(step: int, **given: float) -> None:
            if "loss" in given:
                numbers.append({name: given[name] for name in SHOWN if name in given})

    attached = build(
        Path(job["model"]), dtype, Nf4() if job["work"] == "nf4" else Float(), Lora(rank=job["rank"]), 0, "cpu"
    )
    plan = Timed(InOrder(), job["batch"], len(rows))
    settings = Settings(
        steps=plan.steps,
        seed=0,
        bin_tokens=Train.model_fields["bin_tokens"].default,
        eval_every=0,
        checkpoint_every=10**9,
    )
    objective: Any = Dpo(beta=job["beta"]) if job["work"] == "dpo" else Sft()
    optimizer = AdamW(lr=job["lr"], warmup=0, schedule="constant")
    reporter: Any = Logged()
    train(attached, objective, optimizer, plan, prepared(rows), None, settings, reporter, ranks)
    return clock[1] - clock[0], numbers


def prepared(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    from graftline.stages.train.prepared import PreparedRows

    kinds = {int: pa.int32(), bool: pa.bool_()}
    columns: dict[str, Any] = {"id": [f"r{index:05d}" for index in range(len(rows))]}
    for name, value in rows[0].items():
        kind = pa.list_(kinds[type(value[0])]) if isinstance(value, list) else pa.float64()
        columns[name] = pa.array([row[name] for row in rows], kind)
    return PreparedRows(pa.table(columns))


if __name__ == "__main__":
    main()
