"""Greedy answers to 256 Alpaca prompts of mixed lengths: our engine against transformers and distilabel.

An answer ends at its end of turn or at a limit of its own, drawn for each prompt (16, 32, 64 or 96 tokens): nobody
knows before how long an answer becomes. Tokens counted are those up to each row's own end, on all sides.

- ours: the engine behind every generating stage, all prompts handed over at once.
- transformers: `generate` in static batches sorted by the prompts' length (`--batches`, the best one counts), and in
  batches of 8 in the order they come; a batch runs until its longest answer ends.
- distilabel: the newest TransformersLLM in an environment of its own, one call for each of the limits (a call has one),
  as it is (its pipeline takes rows one by one) and with its pipeline's batch size set, sorted.

    python tests/bench/generate.py [--against transformers|distilabel] [--batches 16 32 64] [--rounds N] [--prompts N]

With `--prompts 64` a round takes some 4 minutes on 2 threads, 256 prompts with `--batches 64 --default` (no unsorted
batches) 2.5. distilabel's default takes rows one by one: 24 prompts are enough for one call.
`--equal N` compares N answers in fp32, where rounding decides no token.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers.venv import DEFAULT, python_of
from side_by_side import alpaca, batches, in_turn, opened, options, share_equal, static, stock

LIMITS = (16, 32, 64, 96)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--against", choices=("transformers", "distilabel"), default="transformers")
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 32, 64], help="of the peer's best, sorted")
    parser.add_argument("--default", type=int, nargs="*", help="the peer's unsorted batch (default: 8, distilabel's 1)")
    parser.add_argument("--equal", type=int, default=0, help="prompts whose answers are compared in fp32")
    parser.add_argument("--peers", type=Path, default=DEFAULT, help="where the peers' environments are made")
    given = parser.parse_args()
    directory, dtype = opened(given)
    from graftline.stages.lm.load import load_tokenizer

    tokenizer = load_tokenizer(directory)
    prompts = [prompt for prompt, _ in alpaca(given.prompts)]
    draw = random.Random(0)
    limits = [draw.choice(LIMITS) for _ in prompts]
    with local(directory, dtype) as engine:
        sides = {"ours": lambda: ours(engine, prompts, limits)}
        usual = given.default if given.default is not None else [8 if given.against == "transformers" else 1]
        peer = transformers_of if given.against == "transformers" else distilabel_of
        ask = peer(given, directory, dtype, tokenizer, prompts, limits)
        sides |= {f"{given.against}_{size}": lambda size=size: ask(size, False) for size in usual}
        sides |= {f"{given.against}_{size}_sorted": lambda size=size: ask(size, True) for size in given.batches}
        ours(engine, prompts[:8], [8] * 8)  # kernels are chosen, memory is found
        ask(8, True, 8)
        seconds, answers = in_turn(sides, given.rounds)
    tokens = {name: sum(counted(tokenizer, each, limits)) for name, each in answers.items()}
    speeds = {name: tokens[name] / seconds[name] for name in sides}
    best = max((name for name in speeds if name != "ours"), key=lambda name: speeds[name])
    result = {
        "bench": "generate",
        "against": given.against,
        "prompts": len(prompts),
        "threads": given.threads,
        "dtype": dtype,
        "tokens": tokens,
        "tokens_per_second": {name: round(each, 1) for name, each in speeds.items()},
        "ratios": {name: round(speeds["ours"] / each, 2) for name, each in speeds.items() if name != "ours"},
        "best_peer": best,
        "equal": {name: share_equal(texts, answers["ours"]) for name, texts in answers.items() if name != "ours"},
    }
    if given.equal:
        result["equal_fp32"] = in_fp32(directory, tokenizer, prompts[: given.equal], limits[: given.equal])
    print("RESULT", json.dumps(result))


def local(directory: Path, dtype: str) -> Any:
    from graftline.stages.lm.llm import Llm
    from graftline.stages.lm.open import open_engine

    return open_engine(Llm("smollm2-135m-instruct", dtype=dtype), directory)


def ours(engine: Any, prompts: Sequence[str], limits: Sequence[int]) -> list[str]:
    from graftline.stages.lm.engine import Request, Sampling

    asked = [
        Request(str(place), ({"role": "user", "content": prompt},), Sampling(max_new_tokens=limit))
        for place, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    return [answer.text for answer in engine.generate(asked)]


def rendered(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    from graftline.stages.lm.chat import render

    return [render(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]


def transformers_of(
    given: Any, directory: Path, dtype: str, tokenizer: Any, prompts: Sequence[str], limits: Sequence[int]
) -> Callable[..., list[str]]:
    model = stock(directory, dtype)

    def ask(size: int, by_length: bool, most: int | None = None) -> list[str]:
        ids = rendered(tokenizer, prompts[:most])
        answers = static(model, ids, limits[:most], batches([len(each) for each in ids], size, by_length))
        return tokenizer.batch_decode(answers, skip_special_tokens=True)

    return ask


def distilabel_of(
    given: Any, directory: Path, dtype: str, tokenizer: Any, prompts: Sequence[str], limits: Sequence[int]
) -> Callable[..., list[str]]:
    script = Path(__file__).parent / "peers" / "distilabel_generate.py"
    command = [python_of("distilabel", given.peers), script, directory, dtype, str(given.threads)]
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # it ends with its input, which ends with us

    def ask(size: int, by_length: bool, most: int | None = None) -> list[str]:
        assert process.stdin is not None and process.stdout is not None
        places = range(len(prompts[:most]))
        order = sorted(places, key=lambda place: len(prompts[place])) if by_length else list(places)
        parts = [[place for place in order if limits[place] == limit] for limit in LIMITS]
        asked = [{"limit": limit, "prompts": [prompts[place] for place in part]}
                 for limit, part in zip(LIMITS, parts, strict=True) if part]  # fmt: skip
        process.stdin.write(json.dumps({"batch": size, "parts": asked}) + "\n")
        process.stdin.flush()
        line = next((each for each in process.stdout if each.startswith("ANSWERS ")), None)
        if line is None:
            raise SystemExit("distilabel ended without an answer: its error is above")
        texts = json.loads(line.removeprefix("ANSWERS "))["texts"]
        found = dict(zip(itertools.chain(*parts), itertools.chain(*texts), strict=True))
        return [found[place] for place in places]

    return ask


def counted(tokenizer: Any, texts: Sequence[str], limits: Sequence[int]) -> list[int]:
    """Tokens of each answer, its end of turn included: of the text again, since that is all that one peer gives."""
    lengths = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return [min(length + 1, limit) for length, limit in zip(lengths, limits, strict=True)]


def in_fp32(directory: Path, tokenizer: Any, prompts: Sequence[str], limits: Sequence[int]) -> float:
    """Share of equal answers of ours, in one batch, and of transformers, one by one."""
    with local(directory, "float32") as engine:
        own = ours(engine, prompts, limits)
    ids = rendered(tokenizer, prompts)
    answers = static(stock(directory, "float32"), ids, limits, [[place] for place in range(len(ids))])
    return share_equal(own, tokenizer.batch_decode(answers, skip_special_tokens=True))


if __name__ == "__main__":
    main()
