"""Greedy answers to 64 Alpaca prompts under 8 adapters, mixed: our engine against PEFT.

Each adapter is a LoRA (r = 16, every linear layer) whose B is random, so that it matters; request i has
adapter i mod 8, and all answers are cut at one length (`--tokens`), with an end of turn counting as one.

- ours: one engine, all requests handed over at once.
- PEFT mixed: `adapter_names=` in static batches sorted by length (`--batches`, the best one counts).
- PEFT in turn: `set_adapter`, and the requests of that adapter as one batch.

PEFT keeps adapters in fp32 over a bf16 base by default; its best here is in the base's own dtype (`--autocast` for the
default).

    python tests/bench/adapters.py [--requests N] [--tokens N] [--batches 16 32 64] [--autocast] [--equal N]
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import alpaca, batches, in_turn, opened, options, share_equal, static, stock

RANK, SPREAD = 16, 0.05
"""Of the random B: with 0.05 a fifth of a prompt's likeliest tokens are others than the base's, with 0.01 none."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--autocast", action="store_true", help="PEFT's adapters in fp32, as it comes")
    parser.add_argument("--equal", type=int, default=0, help="requests whose answers are compared in fp32")
    given = parser.parse_args()
    directory, dtype = opened(given)
    from graftline.stages.lm.load import load_tokenizer

    tokenizer = load_tokenizer(directory)
    with tempfile.TemporaryDirectory() as folder:
        places = made(directory, Path(folder), given.adapters)
        work = Work(tokenizer, [prompt for prompt, _ in alpaca(given.requests)], list(places), given.tokens)
        seconds, answers = measured(given, directory, dtype, places, work)
        result: dict[str, Any] = {}
        if given.equal:
            given.requests, given.batches, given.rounds = given.equal, [8], 1
            fewer = Work(tokenizer, work.prompts[: given.equal], list(places), given.tokens)
            _, exact = measured(given, directory, "float32", places, fewer)
            result = {"equal_fp32": {name: share_equal(each, exact["ours"]) for name, each in exact.items()}}
    tokens = {name: sum(map(len, each)) for name, each in answers.items()}
    speeds = {name: tokens[name] / seconds[name] for name in seconds}
    best = max((name for name in speeds if name != "ours"), key=lambda name: speeds[name])
    print("RESULT", json.dumps({
        "bench": "adapters",
        "requests": len(work.prompts),
        "adapters": given.adapters,
        "threads": given.threads,
        "dtype": dtype,
        "peer_autocast": given.autocast,
        "tokens": tokens,
        "tokens_per_second": {name: round(each, 1) for name, each in speeds.items()},
        "ratios": {name: round(speeds["ours"] / each, 2) for name, each in speeds.items() if name != "ours"},
        "best_peer": best,
        "equal": {name: share_equal(each, answers["ours"]) for name, each in answers.items() if name != "ours"},
        **result,
    }))  # fmt: skip


class Work:
    """Prompts, each with its adapter, and their tokens."""

    def __init__(self, tokenizer: Any, prompts: list[str], adapters: list[str], limit: int) -> None:
        from graftline.stages.lm.chat import render

        self.tokenizer, self.prompts = tokenizer, prompts
        self.ids = [render(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
        self.adapters = [adapters[place % len(adapters)] for place in range(len(prompts))]
        self.limits = [limit] * len(prompts)


def made(directory: Path, folder: Path, count: int) -> dict[str, Path]:
    """Adapters as PEFT saves them."""
    import torch
    from peft import LoraConfig, get_peft_model

    places = {}
    for number in range(count):
        torch.manual_seed(number)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(stock(directory, "float32"), config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=SPREAD)
        places[f"a{number}"] = folder / f"a{number}"
        model.save_pretrained(places[f"a{number}"])
    return places


def measured(
    given: Any, directory: Path, dtype: str, places: dict[str, Path], work: Work
) -> tuple[dict[str, float], dict[str, list[list[int]]]]:
    from graftline.stages.lm.llm import Llm
    from graftline.stages.lm.open import open_engine

    model = peer(directory, dtype, places, given.autocast)
    with open_engine(Llm("smollm2-135m-instruct", dtype=dtype), directory, places) as engine:
        ours(engine, work, 8, 4)  # kernels are chosen, memory is found
        sides = {"ours": lambda: ours(engine, work), "in_turn": lambda: in_turns(model, work)}
        sides |= {f"mixed_{size}": lambda size=size: mixed(model, work, size) for size in given.batches}
        return in_turn(sides, given.rounds)


def peer(directory: Path, dtype: str, places: dict[str, Path], autocast: bool) -> Any:
    from peft import PeftModel

    model = stock(directory, dtype)
    for name, place in places.items():
        if isinstance(model, PeftModel):
            model.load_adapter(place, name, autocast_adapter_dtype=autocast)
        else:
            model = PeftModel.from_pretrained(model, place, name, autocast_adapter_dtype=autocast)
    return model.eval()


def ours(engine: Any, work: Work, most: int | None = None, tokens: int | None = None) -> list[list[int]]:
    """Answers as tokens of their texts again, which are what an engine gives."""
    from graftline.stages.lm.engine import Request, Sampling

    asked = [
        Request(str(place), ({"role": "user", "content": prompt},), Sampling(max_new_tokens=tokens or limit), adapter)
        for place, (prompt, limit, adapter) in enumerate(zip(work.prompts, work.limits, work.adapters, strict=True))
    ]
    return again(work, [answer.text for answer in engine.generate(asked[:most])])


def again(work: Work, texts: list[str]) -> list[list[int]]:
    return [work.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def mixed(model: Any, work: Work, size: int) -> list[list[int]]:
    groups = batches([len(each) for each in work.ids], size, by_length=True)
    return decoded(work, static(model, work.ids, work.limits, groups, adapter_names=work.adapters))


def in_turns(model: Any, work: Work) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in work.ids]
    for adapter in sorted(set(work.adapters)):
        model.set_adapter(adapter)
        group = [place for place, own in enumerate(work.adapters) if own == adapter]
        found = static(model, work.ids, work.limits, [group])
        for place in group:
            answers[place] = found[place]
    return decoded(work, answers)


def decoded(work: Work, answers: list[list[int]]) -> list[list[int]]:
    return again(work, work.tokenizer.batch_decode(answers, skip_special_tokens=True))


if __name__ == "__main__":
    main()
