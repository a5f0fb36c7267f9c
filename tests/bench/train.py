"""Training against TRL: LoRA, LoRA over NF4, and DPO, tokens a second at equal loss and each process's peak memory.

Both sides train a LoRA (r = 16, alpha 32, every linear layer but the head, no dropout) on SmolLM2-135M with AdamW at
one constant rate, on the same token ids, in the same order, in the same batches; each in a process of its own, by turns
(ours, as `own2`, in two that share the threads; a side's peak is the sum of its processes'). The first steps warm up;
loading and they are not counted. Tokens are those of the rows, padding left out (of pairs: both answers, each after its
prompt). DPO's reference pass is counted on both sides. Losses are compared over the last half of the counted steps, and
a gap above 1 % fails the bench.

    python tests/bench/train.py lora|nf4|dpo [--rows 128] [--turns 3] [--own own,own2] [--peer default,best]
        [--dtype float32]

`lora` and `nf4` are Alpaca's first rows, the answers trained; `dpo` is hh-rlhf's first helpful pairs that are short
enough (GRAFTLINE_DATA, or ../shared/data). `--peer` names settings below; `default` is what TRL does if told nothing
but the task. TRL runs in an environment made from `peers/trl.txt` (`--peers DIR` says where).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.venv import DEFAULT, python_of

HERE = Path(__file__).resolve().parent
WARM, RANK, BATCH = 2, 16, 8
RATES = {"lora": 1e-4, "nf4": 1e-4, "dpo": 5e-5}
BETA = 0.1
EQUAL = 0.01
PAIR_TOKENS = 160
"""The longest of a pair's two sequences."""

FAST = {"gradient_checkpointing": False, "dtype": "bfloat16", "adapter": "bfloat16", "bf16": False}
"""All in bf16, without autocast and without a second forward pass."""
FLAT = FAST | {"padding_free": True}
PEERS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {
        "default": {},
        "best": FLAT,
        "flat4": FLAT | {"rows_a_pass": 4},
        "single": FAST | {"rows_a_pass": 1},
        "padded": FAST,
        "default2": {"processes": 2},
        "best2": FLAT | {"processes": 2},
    },
    "nf4": {
        "default": {},
        "best": FLAT | {"compute": "bfloat16"},
        "flat4": FLAT | {"compute": "bfloat16", "rows_a_pass": 4},
        "best2": FLAT | {"compute": "bfloat16", "processes": 2},
    },
    "dpo": {
        "default": {},
        "best": FAST | {"rows_a_pass": 2},
        "single": FAST | {"rows_a_pass": 1},
        "four": FAST | {"rows_a_pass": 4},
    },
}
"""What TRL is told, by name; `rows_a_pass` makes the rest of a step's rows accumulate, `processes` share them under
torchrun, as `accelerate launch` would."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=tuple(PEERS))
    parser.add_argument("--rows", type=int, default=128, help="counted, of a turn (of dpo: pairs)")
    parser.add_argument("--turns", type=int, default=3, help="of each side")
    parser.add_argument("--peer", default="default,best", help="which of TRL's settings, by name")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of both (default: as each chooses)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--own", default="own", help="which of ours: own, own2")
    parser.add_argument("--peers", type=Path, default=DEFAULT, help="where their environments lie")
    given = parser.parse_args()
    own, names = ([name for name in each.split(",") if name] for each in (given.own, given.peer))
    python = python_of("trl", given.peers)
    with tempfile.TemporaryDirectory() as scratch:
        job, tokens = job_of(given, Path(scratch))
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in (*own, *names)}
        for _ in range(given.turns):
            for name, made in turns.items():
                made.append(turn(python, job, name, tokens, Path(scratch)))
    result = compared(given, job, tokens, turns, own)
    print("RESULT", json.dumps(result))
    gaps = {f"{ours}, {name}": peer["loss_gap"][ours] for name, peer in result["peers"].items() for ours in own}
    far = {both: gap for both, gap in gaps.items() if gap > EQUAL}
    if far:
        sys.exit(f"the losses differ by more than {EQUAL:.0%}, so the speeds are not comparable: {far}")


def job_of(given: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], int]:
    """What both sides are told, and the tokens that count."""
    from graftline.stages.lm import smollm2

    directory = smollm2.directory()[0]
    count = WARM * BATCH + given.rows
    rows = pairs(directory, count) if given.work == "dpo" else alpaca(directory, count)
    if len(rows) < count or given.rows % BATCH:
        sys.exit(f"{len(rows)} rows, of which whole steps of {BATCH} are taken; give fewer, or a multiple")
    file = scratch / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = {
        "work": given.work,
        "rows": str(file),
        "model": str(directory),
        "batch": BATCH,
        "warm": WARM,
        "rank": RANK,
        "lr": RATES[given.work],
        "beta": BETA,
        "dtype": given.dtype,
        "threads": given.threads,
    }
    return job, sum(map(length, rows[WARM * BATCH :]))


def length(row: dict[str, Any]) -> int:
    """Its real tokens."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def turn(python: Path, job: dict[str, Any], name: str, tokens: int, scratch: Path) -> dict[str, Any]:
    """One side's process, from start to end."""
    file = scratch / "job.json"
    own = name.startswith("own")
    settings = {} if own else dict(PEERS[job["work"]][name])
    job = job | {"workers": int(name.removeprefix("own") or 1)} if own else job
    processes = settings.pop("processes", 1)
    file.write_text(json.dumps(job if own else job | {"settings": settings}), encoding="utf-8")
    side = [sys.executable, HERE / "own_training.py"] if own else [python, HERE / "peers" / "trl_side.py"]
    if processes > 1:
        side[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"] // processes), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*side, file], env=environment, capture_output=True, text=True, cwd=scratch)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-4000:]}")
    made = json.loads(done.stdout.splitlines()[-1])
    made["tokens_per_second"] = tokens / made["seconds"]
    shown = {key: round(made[key], 1) for key in ("tokens_per_second", "seconds")}
    print(name, json.dumps(shown | {"peak_mb": made["peak_kib"] >> 10, "last": made["numbers"][-1]}), flush=True)
    return made


def compared(
    given: argparse.Namespace,
    job: dict[str, Any],
    tokens: int,
    turns: dict[str, list[dict[str, Any]]],
    own: list[str],
) -> dict[str, Any]:
    """Medians of each side, and ours in the peers' terms."""
    sides = {name: figures(made) for name, made in turns.items()}
    ours = {name: sides.pop(name) for name in own}
    for name, peer in sides.items():
        peer["ratio"] = {each: round(ratio(turns[each], turns[name]), 2) for each in own}
        peer["loss_gap"] = {each: round(abs(ours[each]["loss"] / peer["loss"] - 1), 5) for each in own}
        peer["own_memory_share"] = {each: round(ours[each]["peak_mb"] / peer["peak_mb"], 3) for each in own}
    return {
        "bench": f"train {given.work}",
        "rows": given.rows,
        "tokens": tokens,
        "turns": given.turns,
        "threads": given.threads,
        "instructions": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "lr": job["lr"],
        "own": ours,
        "peers": sides,
    }


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """The median over the turns."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(one["tokens_per_second"] / other["tokens_per_second"] for one, other in pairs)


def figures(made: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one side's turns."""
    steps = [each["numbers"][WARM + (len(each["numbers"]) - WARM) // 2 :] for each in made]
    means = {
        name: round(statistics.mean(step[name] for turn in steps for step in turn), 5) for name in made[0]["numbers"][0]
    }
    return {
        "tokens_per_second": round(statistics.median(each["tokens_per_second"] for each in made), 1),
        "peak_mb": round(statistics.median(each["peak_kib"] for each in made) / 1024),
        **means,
        "first": made[0]["numbers"][0],
        "settings": made[0]["settings"],
        "versions": made[0]["versions"],
    }


# --- the work -------------------------------------------------------------------------------------------------


def data(*names: str) -> list[dict[str, Any]]:
    root = Path(os.environ.get("GRAFTLINE_DATA") or HERE.parents[2] / "shared" / "data")
    return [json.loads(line) for line in root.joinpath(*names).read_text(encoding="utf-8").splitlines()]


def alpaca(directory: Path, count: int) -> list[dict[str, Any]]:
    from graftline.stages.lm.chat import render_supervised
    from graftline.stages.lm.load import load_tokenizer

    tokenizer, rows = load_tokenizer(directory), []
    for row in data("alpaca", "alpaca.jsonl"):
        if len(rows) < count and row["output"].strip():
            asked = f"{row['instruction']}\n{row['input']}".strip()
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
            ids, trained = render_supervised(tokenizer, messages)
            rows.append({"input_ids": ids, "trained": trained})
    return rows


def pairs(directory: Path, count: int) -> list[dict[str, Any]]:
    from graftline.stages.lm.chat import continuation
    from graftline.stages.lm.load import load_tokenizer

    tokenizer, rows = load_tokenizer(directory), []
    for row in data("hh_rlhf", "helpful-base.jsonl"):
        *before, chosen = dialogue(row["chosen"])
        *other, rejected = dialogue(row["rejected"])
        answers = [turn["content"] for turn in (chosen, rejected)]
        if len(rows) == count or before != other or not all(answers) or answers[0] == answers[1]:
            continue
        (prompt, first), (_, second) = [continuation(tokenizer, before, answer) for answer in answers]
        if len(prompt) + max(len(first), len(second)) <= PAIR_TOKENS:
            rows.append({"prompt_ids": prompt, "chosen_ids": first, "rejected_ids": second})
    return rows


def dialogue(text: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


if __name__ == "__main__":
    main()
