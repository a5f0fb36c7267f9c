"""What the benches of generation, scoring and adapters share: their rows, their turns, and transformers' own way."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def options(bench: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=bench, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of all (default: by the probe)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each side; medians count")
    return parser


def opened(given: argparse.Namespace) -> tuple[Path, str]:
    """The model's directory, and the number format of all sides."""
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    warnings.filterwarnings("ignore")
    import torch
    from transformers.utils import logging

    from graftline.stages.lm import smollm2
    from graftline.stages.lm.load import probe_dtype

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(given.threads)
    return smollm2.directory()[0], given.dtype or probe_dtype()


def alpaca(count: int) -> list[tuple[str, str]]:
    """(prompt, answer) of Alpaca's first rows that have both (GRAFTLINE_DATA, or ../shared/data)."""
    data = Path(os.environ.get("GRAFTLINE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    rows = map(json.loads, (data / "alpaca" / "alpaca.jsonl").read_text(encoding="utf-8").splitlines())
    pairs = ((f"{row['instruction']}\n{row['input']}".strip(), row["output"].strip()) for row in rows)
    found = [pair for pair in pairs if all(pair)][:count]
    if len(found) < count:
        raise SystemExit(f"Alpaca has {len(found)} rows here, not {count}")
    return found


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Each side's median seconds and its last answer; they take turns, so that another process's burst meets all."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, Any] = {}
    for round_ in range(rounds):
        for name in list(sides) if round_ % 2 == 0 else reversed(list(sides)):
            started = time.perf_counter()
            answers[name] = sides[name]()
            seconds[name].append(time.perf_counter() - started)
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    return {name: statistics.median(each) for name, each in seconds.items()}, answers


def stock(directory: Path, dtype: str) -> Any:
    """The model as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()


def batches(lengths: Sequence[int], size: int, by_length: bool) -> list[list[int]]:
    """Places of rows that are computed together, in order or sorted by length."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place]) if by_length else list(range(len(lengths)))
    return [order[start : start + size] for start in range(0, len(order), size)]


def padded(rows: Sequence[Sequence[int]], fill: int, left: bool) -> tuple[Any, Any]:
    """Tokens [rows, longest] and their mask."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), fill)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    return ids, mask


def static(
    model: Any, prompts: Sequence[list[int]], limits: Sequence[int], groups: Iterable[list[int]], **more: Any
) -> list[list[int]]:
    """Each prompt's greedy answer by `generate`, group by group: a batch goes on until its longest answer has ended,
    and what a row has after its own end or limit does not count.

    Args:
        more: one value a prompt, by the argument's name (PEFT's `adapter_names`).
    """
    import torch

    end = model.generation_config.eos_token_id
    answers: list[list[int]] = [[] for _ in prompts]
    for group in groups:
        ids, mask = padded([prompts[place] for place in group], end, left=True)
        most = max(limits[place] for place in group)
        given = {name: [values[place] for place in group] for name, values in more.items()}
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=most, pad_token_id=end, **given
            )
        for place, row in zip(group, output[:, ids.shape[1] :].tolist(), strict=True):
            row = row[: limits[place]]
            answers[place] = row[: row.index(end) + 1] if end in row else row
    return answers


def share_equal(one: Sequence[Any], other: Sequence[Any]) -> float:
    return round(statistics.mean(a == b for a, b in zip(one, other, strict=True)), 3)
