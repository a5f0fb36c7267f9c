"""Log-probabilities of given text: rows, and choices that share their prompt.

Sequences are packed into one row of tokens with restarted positions, and a sequence sees itself alone; of a prompt with
choices, every choice sees the prompt and itself. Where the model's attention does not know that by the positions, it
takes an explicit mask. The head is applied where a token is asked about, nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from graftline.stages.errors import PromptTooLong
from graftline.stages.lm.chat import continuation, render, render_supervised
from graftline.stages.lm.engine import Messages
from graftline.stages.lm.in_memory import Loaded
from graftline.stages.lm.label_logprobs import label_logprobs
from graftline.stages.lm.shared_prefixes import attends_by_positions

TOKENS = {"cpu": 512, "cuda": 8192}
"""Tokens of a pass with a mask. On a CPU larger packs only lengthen what it masks, which grows with the square."""
TOKENS_APART = 2048
"""Of a pass on a CPU whose rows are kept apart by their positions, without a mask: 1.17 times as fast as with 512 in
bf16 with AMX on one thread; 1024 lies between [measured]."""


@dataclass
class Tree:
    """A prompt and what may follow it, as one sequence of tokens.

    Args:
        ids: tokens; `positions`: of each in its own branch; `branches`: which branch each is of (0: the trunk).
        asked: (index of the token that predicts, token predicted, number of the sum it counts in).
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    def grow(self, ids: Sequence[int], start: int, branch: int) -> None:
        """Append tokens of a branch, the first at position `start`."""
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.branches += [branch] * len(ids)


def logprobs(
    loaded: Loaded, rows: Sequence[Messages], adapter: str | None, whole: bool = False, last: bool = False
) -> list[list[float]]:
    """For each row, the log-probability of every trained token (`whole`: of every token but the first; `last`: of those
    of the last turn alone, given all before it)."""
    trees = []
    for row in rows:
        ids, mask = render_supervised(loaded.tokenizer, row, last=last)
        tree = Tree()
        tree.grow(ids[:-1], 0, 0)
        trained = [place for place in range(1, len(ids)) if whole or mask[place]]
        tree.asked = [(place - 1, ids[place], index) for index, place in enumerate(trained)]
        trees.append(tree)
    return _score(loaded, trees, adapter)


def count_tokens(loaded: Loaded, conversations: Sequence[Messages]) -> int:
    """Tokens of conversations, with the template's around them."""
    return sum(len(render(loaded.tokenizer, each)) for each in conversations)


def choice_logprobs(
    loaded: Loaded, prompts: Sequence[Messages], choices: Sequence[Sequence[str]], adapter: str | None
) -> list[list[float]]:
    """For each prompt and each of its choices, the log-probability of the choice's text and its end of turn."""
    trees = []
    for prompt, texts in zip(prompts, choices, strict=True):
        tree = Tree()
        for number, text in enumerate(texts):
            start, answer = continuation(loaded.tokenizer, prompt, text)
            if not tree.ids:
                tree.grow(start, 0, 0)
            place = len(tree.ids)
            tree.asked.append((len(start) - 1, answer[0], number))
            tree.asked += [(place + index, token, number) for index, token in enumerate(answer[1:])]
            tree.grow(answer[:-1], len(start), number + 1)
        trees.append(tree)
    return _score(loaded, trees, adapter)


def _score(loaded: Loaded, trees: Sequence[Tree], adapter: str | None) -> list[list[float]]:
    for tree in trees:
        if tree.ids and max(tree.positions) >= loaded.context:
            raise PromptTooLong(
                f"has {max(tree.positions) + 2} tokens, and {loaded.name} takes {loaded.context}", do="shorten it"
            )
    sums = [[0.0] * (1 + max((number for _, _, number in tree.asked), default=-1)) for tree in trees]
    slot = loaded.adapters.acquire(adapter)
    try:
        loaded.adapters.routing.use([slot])
        tokens = TOKENS_APART if attends_by_positions(loaded.model) else TOKENS.get(loaded.device.type, TOKENS["cpu"])
        for pack in _packs(trees, tokens):
            found = iter(_forward(loaded, [trees[index] for index in pack]).tolist())
            for index in pack:
                for (_, _, number), value in zip(trees[index].asked, found, strict=False):
                    sums[index][number] += value
    finally:
        loaded.adapters.routing.use(())
        loaded.adapters.release(slot)
    return sums


def _packs(trees: Sequence[Tree], budget: int) -> Iterator[list[int]]:
    """Indices of trees that are computed together: in order, as many as fit the budget of tokens."""
    pack: list[int] = []
    tokens = 0
    for index, tree in enumerate(trees):
        if pack and tokens + len(tree.ids) > budget:
            yield pack
            pack, tokens = [], 0
        if tree.asked:
            pack.append(index)
            tokens += len(tree.ids)
    if pack:
        yield pack


@torch.no_grad()
def _forward(loaded: Loaded, trees: Sequence[Tree]) -> torch.Tensor:
    """The log-probabilities of everything asked in these trees, in their order."""
    model: Any = loaded.model
    places, targets, offset = [], [], 0
    for tree in trees:
        places += [offset + place for place, _, _ in tree.asked]
        targets += [token for _, token, _ in tree.asked]
        offset += len(tree.ids)

    def tensor(values: list[Any]) -> torch.Tensor:
        return torch.tensor(values, device=loaded.device)

    ids = tensor([[token for tree in trees for token in tree.ids]])
    positions = tensor([[position for tree in trees for position in tree.positions]])
    mask = None if attends_by_positions(model) else _mask(trees, model.dtype).to(loaded.device)
    return label_logprobs(model, ids, positions, tensor(places), tensor(targets), mask)


def _mask(trees: Sequence[Tree], dtype: torch.dtype) -> torch.Tensor:
    """[1, 1, tokens, tokens], 0 where a token sees another and the least number elsewhere: earlier tokens of its own
    tree, in the trunk or its own branch."""
    tree_of = torch.tensor([number for number, tree in enumerate(trees) for _ in tree.ids])
    branch = torch.tensor([number for tree in trees for number in tree.branches])
    seen = (tree_of[:, None] == tree_of[None, :]) & ((branch[None, :] == 0) | (branch[:, None] == branch[None, :]))
    mask = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype)
    return mask.masked_fill_(seen.tril_(), 0)[None, None]
