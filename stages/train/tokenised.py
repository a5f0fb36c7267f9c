"""Rows as token ids with the mask of what is trained."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.errors import NoTrainedToken
from graftline.stages.expected import Expected, Given, turns_of
from graftline.stages.shapes import Mapper
from graftline.stages.stage import Context, Model

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase


class Tokenised(Mapper):
    """Each row's tokens (`input_ids`), and for each whether it is trained (`trained`): the assistant's and their
    end-of-turn token. `Train` adds this stage itself; trials share it.

    Args:
        rows: with `messages`.
        model: whose tokenizer and chat template are used.
        max_length: a row of more tokens is filtered, never cut.

    Property tested: the mask is `render_supervised`'s; a row with nothing to train fails alone; a long one is filtered.
    """

    method = "train.tokenised"
    origin = "Graftline: rows are tokenised once, not once a trial"
    needs = {"messages": "messages"}
    adds = {"input_ids": "list<int32>", "trained": "list<bool>"}

    model: Model
    max_length: Annotated[int, Field(ge=2)]

    def expected(self, given: Given) -> Expected:
        rows, reader = given.rows(self.rows), given.reader(self.model)
        return Expected(rows.only(lambda row: reader.whole(turns_of(row)) <= self.max_length))

    def map_rows(self, table: pa.Table, context: Context) -> pa.Table:
        import pyarrow as pa

        from graftline.stages.lm.chat import render_supervised

        tokenizer = _tokenizer(context.opened(self.model).directory("model"))
        tokens: list[list[int]] = []
        trained: list[list[bool]] = []
        filtered: list[str | None] = []
        for messages in table["messages"].to_pylist():
            ids, mask = render_supervised(tokenizer, messages)
            if not any(mask[1:]):
                raise NoTrainedToken("only its first token would be trained, which nothing predicts")
            tokens.append(ids)
            trained.append(mask)
            filtered.append(f"longer than {self.max_length} tokens" if len(ids) > self.max_length else None)
        added: dict[str, Any] = {
            "input_ids": pa.array(tokens, pa.list_(pa.int32())),
            "trained": pa.array(trained, pa.list_(pa.bool_())),
            "filtered": pa.array(filtered, pa.string()),
        }
        for name, column in added.items():
            table = table.append_column(name, column)
        return table


@functools.lru_cache(maxsize=2)
def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    from graftline.stages.lm.load import load_tokenizer

    return load_tokenizer(directory)
