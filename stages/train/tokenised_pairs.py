"""Preference rows as token ids."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.expected import Expected, Given, pair_tokens
from graftline.stages.shapes import Mapper
from graftline.stages.stage import Context, Model

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase


class TokenisedPairs(Mapper):
    """Each preference row's tokens: the prompt's (`prompt_ids`) and, after it, each answer's with its end-of-turn token
    (`chosen_ids`, `rejected_ids`). `Train` adds this stage itself; trials share it.

    Args:
        rows: with `prompt`, `chosen` and `rejected`.
        model: whose tokenizer and chat template are used.
        max_length: a row is filtered, never cut, where the prompt with either answer has more tokens.

    Property tested: the tokens are those generation would have read and written; both answers end in the end-of-turn
    token; a row is filtered whole; equal answers are filtered.
    """

    method = "train.tokenised_pairs"
    origin = "Graftline: rows are tokenised once, not once a trial"
    needs = {"prompt": "messages", "chosen": "string", "rejected": "string"}
    adds = {"prompt_ids": "list<int32>", "chosen_ids": "list<int32>", "rejected_ids": "list<int32>"}

    model: Model
    max_length: Annotated[int, Field(ge=2)]

    def expected(self, given: Given) -> Expected:
        rows, reader = given.rows(self.rows), given.reader(self.model)
        return Expected(rows.only(lambda row: max(pair_tokens(row, reader)) <= self.max_length))

    def map_rows(self, table: pa.Table, context: Context) -> pa.Table:
        import pyarrow as pa

        from graftline.stages.lm.chat import continuation

        tokenizer = _tokenizer(context.opened(self.model).directory("model"))
        tokens: dict[str, list[list[int]]] = {name: [] for name in self.adds}
        filtered: list[str | None] = []
        for row in table.select(list(self.needs)).to_pylist():
            start, chosen = continuation(tokenizer, row["prompt"], row["chosen"])
            _, rejected = continuation(tokenizer, row["prompt"], row["rejected"])
            for name, ids in zip(tokens, (start, chosen, rejected), strict=True):
                tokens[name].append(ids)
            longest = len(start) + max(len(chosen), len(rejected))
            reason = f"longer than {self.max_length} tokens" if longest > self.max_length else None
            filtered.append("chosen and rejected are the same" if chosen == rejected else reason)
        for name, values in tokens.items():
            table = table.append_column(name, pa.array(values, pa.list_(pa.int32())))
        added: Any = pa.array(filtered, pa.string())
        return table.append_column("filtered", added)


@functools.lru_cache(maxsize=2)
def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    from graftline.stages.lm.load import load_tokenizer

    return load_tokenizer(directory)
