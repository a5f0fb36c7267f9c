"""Log-probabilities of Alpaca's answers, with their prompt and without: ours against forward passes as written by hand.

It is the work of Instruction-Following Difficulty: of each row the answer's tokens given the prompt, and the same
tokens after an empty prompt. All sides score the same tokens, and a row's two sums are compared.

- ours: the packed path behind Perplexity, Difficulty and the choice metrics.
- one by one: a row a forward pass, labels masked, the model's own loss (what the scripts of the papers do).
- padded: batches sorted by length (`--batches`, the best one counts), log-softmax of the answers' logits.

    python tests/bench/score.py [--rows N] [--batches 8 16 32] [--rounds N]

2,000 rows take all sides together some 26 minutes on 2 threads; `--rows 250` keeps a call under 4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from side_by_side import alpaca, batches, in_turn, opened, options, padded, stock

Scored = tuple[list[int], int]
"""Tokens, and how many of the last ones are asked about."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 16, 32])
    given = parser.parse_args()
    directory, dtype = opened(given)
    from graftline.stages.lm.chat import render_supervised
    from graftline.stages.lm.llm import Llm
    from graftline.stages.lm.load import load_tokenizer
    from graftline.stages.lm.open import open_engine
    from graftline.stages.score.perplexity import unprompted

    tokenizer = load_tokenizer(directory)
    rows: list[Any] = []
    for prompt, answer in alpaca(given.rows):
        row = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
        rows += [row, unprompted(row)]
    scored = []
    for row in rows:
        ids, trained = render_supervised(tokenizer, row)
        first = trained.index(True)
        scored.append((ids[: len(ids) - trained[::-1].index(True)], sum(trained[first:])))
    model = stock(directory, dtype)
    with open_engine(Llm("smollm2-135m-instruct", dtype=dtype), directory) as engine:
        sides = {"ours": lambda: [sum(each) for each in engine.logprobs(rows)]}
        sides["one_by_one"] = lambda: one_by_one(model, scored)
        sides |= {f"padded_{size}": lambda size=size: in_batches(model, scored, size) for size in given.batches}
        engine.logprobs(rows[:16])  # kernels are chosen, memory is found
        in_batches(model, scored[:16], 8)
        seconds, sums = in_turn(sides, given.rounds)
    tokens = sum(len(ids) for ids, _ in scored)
    best = min((name for name in seconds if name.startswith("padded")), key=lambda name: seconds[name])
    result = {
        "bench": "score",
        "rows": given.rows,
        "threads": given.threads,
        "dtype": dtype,
        "tokens": tokens,
        "tokens_per_second": {name: round(tokens / each, 1) for name, each in seconds.items()},
        "ratio_one_by_one": round(seconds["one_by_one"] / seconds["ours"], 2),
        "best_padded": best,
        "ratio_padded": round(seconds[best] / seconds["ours"], 2),
        "mean_loss": {name: round(-sum(each) / sum(count for _, count in scored), 5) for name, each in sums.items()},
        "largest_difference_a_token": {
            name: round(max(abs(a - b) / n for a, b, (_, n) in zip(each, sums["ours"], scored, strict=True)), 5)
            for name, each in sums.items()
        },
    }
    print("RESULT", json.dumps(result))


def one_by_one(model: Any, rows: Sequence[Scored]) -> list[float]:
    import torch

    sums = []
    for ids, count in rows:
        tokens = torch.tensor([ids])
        labels = tokens.clone()
        labels[:, :-count] = -100
        with torch.no_grad():
            sums.append(-float(model(input_ids=tokens, labels=labels).loss) * count)
    return sums


def in_batches(model: Any, rows: Sequence[Scored], size: int) -> list[float]:
    import torch

    sums = [0.0] * len(rows)
    for group in batches([len(ids) for ids, _ in rows], size, by_length=True):
        ids, mask = padded([rows[place][0] for place in group], 0, left=False)
        counts = [rows[place][1] for place in group]
        lengths = [len(rows[place][0]) for place in group]
        asked = torch.zeros(len(group), ids.shape[1] - 1, dtype=torch.bool)
        for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            asked[index, length - 1 - count : length - 1] = True
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            found = -torch.nn.functional.cross_entropy(logits[asked].float(), ids[:, 1:][asked], reduction="none")
        for place, part in zip(group, found.split(counts), strict=True):
            sums[place] = float(part.sum())
    return sums


if __name__ == "__main__":
    main()
