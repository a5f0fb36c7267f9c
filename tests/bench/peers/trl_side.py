"""TRL's side of `train.py`: one job (a JSON file, see there) trained in this process, its figures as one JSON line.

Runs in the environment of `trl.txt` and imports nothing of ours. Rows come as token ids, in the order they are trained
in. What the job does not name is left as TRL, PEFT and bitsandbytes have it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from memory import peak_kib
from peft import LoraConfig
from transformers import BitsAndBytesConfig, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

PROCESSES = int(os.environ.get("WORLD_SIZE", 1))
PACKAGES = ("torch", "trl", "peft", "transformers", "bitsandbytes", "accelerate")
SHOWN = {"loss": "loss", "logps/chosen": "logprob_chosen", "rewards/margins": "margin"}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"] // PROCESSES)
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    watch = Watch(job["warm"])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = made(job, rows, scratch)
        trainer.add_callback(watch)
        trainer.train()
    peaks = [peak_kib()] * PROCESSES
    if PROCESSES > 1:
        torch.distributed.all_gather_object(peaks, peak_kib())
        if torch.distributed.get_rank():
            return
    arguments, model = trainer.args, trainer.model
    first = next(each for each in model.parameters() if each.requires_grad)
    settings = {
        "weights": str(model.get_input_embeddings().weight.dtype),
        "adapter": str(first.dtype),
        "autocast_bf16": arguments.bf16,
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "padding_free": trainer.padding_free,
        "rows_a_pass": arguments.per_device_train_batch_size,
        "attention": model.config._attn_implementation,
        "optimizer": str(arguments.optim),
    }
    print(
        json.dumps(
            {
                "seconds": watch.seconds,
                "numbers": watch.numbers,
                "peak_kib": sum(peaks),
                "settings": settings,
                "versions": {name: version(name) for name in PACKAGES},
            }
        )
    )


class Watch(TrainerCallback):
    """The clock between the last warm step's end and the last step's, and what each step logs."""

    def __init__(self, warm: int) -> None:
        self.warm, self.seconds, self.numbers = warm, 0.0, list[dict[str, float]]()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.warm:
            self.started = time.perf_counter()
        elif state.global_step == state.max_steps:
            self.seconds = time.perf_counter() - self.started

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.numbers.append({ours: float(logs[theirs]) for theirs, ours in SHOWN.items() if theirs in logs})


class GivenPairs(DPOTrainer):
    """TRL's DPO on pairs that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def made(job: dict[str, Any], rows: list[dict[str, Any]], scratch: str) -> Any:
    """The trainer, on the job's terms: same rows, order, batch, rate, adapter; no dropout, no warm-up."""
    chosen = dict(job["settings"])
    if job["dtype"]:
        formats = {name: job["dtype"] for name in ("adapter", "compute") if name in chosen}
        chosen |= formats | {"dtype": job["dtype"], "bf16": job["dtype"] == "bfloat16" and chosen.get("bf16", True)}
    loading = {"dtype": chosen.pop("dtype")} if "dtype" in chosen else {}
    adapter, compute = chosen.pop("adapter", None), chosen.pop("compute", None)
    rows_a_pass = chosen.pop("rows_a_pass", job["batch"] // PROCESSES)
    terms = {
        "output_dir": scratch,
        "use_cpu": True,  # without it TRL refuses: its default of bf16 would want a GPU
        "per_device_train_batch_size": rows_a_pass,
        "gradient_accumulation_steps": job["batch"] // PROCESSES // rows_a_pass,
        "learning_rate": job["lr"],
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **chosen,
    }
    if loading:
        terms["model_init_kwargs"] = loading
    config = LoraConfig(r=job["rank"], lora_alpha=2 * job["rank"], target_modules="all-linear", task_type="CAUSAL_LM")
    common: dict[str, Any] = {"model": job["model"], "peft_config": config}
    if job["work"] == "nf4":
        named = {"bnb_4bit_compute_dtype": getattr(torch, compute)} if compute else {}
        common["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **named
        )
    if job["work"] == "dpo":
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        pairs = Dataset.from_list([{name: row[name] for name in names} for row in rows])
        trainer = GivenPairs(args=DPOConfig(beta=job["beta"], **terms), train_dataset=pairs, **common)
    else:
        labelled = [{"input_ids": row["input_ids"], "labels": labels(row)} for row in rows]
        trainer = SFTTrainer(args=SFTConfig(**terms), train_dataset=Dataset.from_list(labelled), **common)
    if adapter:  # as TRL itself does over a quantised base
        for each in trainer.model.parameters():
            if each.requires_grad:
                each.data = each.data.to(getattr(torch, adapter))
    return trainer


def labels(row: dict[str, Any]) -> list[int]:
    return [token if trained else -100 for token, trained in zip(row["input_ids"], row["trained"], strict=True)]


if __name__ == "__main__":
    main()
