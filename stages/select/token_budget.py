"""The best rows that fit a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from graftline.stages.errors import RowFault
from graftline.stages.expected import Expected, Given, turns_of
from graftline.stages.rows import Columns
from graftline.stages.select.ranking import missing, ranked, refuse_unscored
from graftline.stages.shapes import Selector, Verdict
from graftline.stages.stage import Context, Model

if TYPE_CHECKING:
    import pyarrow as pa


class TokenBudget(Selector):
    """Keeps the best rows by a score until a budget of tokens is spent; never more than the budget.

    A row's tokens are those of its whole conversation in the model's chat template, which is what training reads. Rows
    are taken from the best to the worst; one that no longer fits is passed over, and smaller ones may follow. Rows
    without a score (missing or NaN) come last, and ties go to the smaller id.

    Args:
        model: whose tokenizer and chat template count.
        by: the column of the score, int64 or float64.
        budget: tokens.
        largest: the largest values are the best, else the smallest.

    The properties its tests check: the kept rows have at most the budget's tokens, and no row that was passed over
    would have fitted when its turn came; nothing depends on the rows' order.
    """

    method = "select.token_budget"
    origin = "greedy filling by a score; no paper"

    model: Model
    by: str
    budget: Annotated[int, Field(ge=1)]
    largest: bool = True

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"rows": {"messages": "messages", self.by: "number"}}

    def expected(self, given: Given) -> Expected:
        """As many rows of the mean length as fit."""
        rows, reader = given.rows(self.rows), given.reader(self.model)
        mean = rows.mean(lambda row: reader.whole(turns_of(row)))
        return Expected(rows.at_most(round(self.budget / mean) if mean else None, mark="~"))

    def select_rows(self, table: pa.Table, context: Context) -> Iterable[Verdict]:
        from graftline.stages.lm.chat import render_whole
        from graftline.stages.lm.load import load_tokenizer
        from graftline.stages.lm.reference import base_of

        model = base_of(self.model) if self.model.kind == "adapter" else self.model
        tokenizer = load_tokenizer(context.opened(model).directory("model"))
        ids, scores = table["id"].to_pylist(), table[self.by].to_pylist()
        conversations, left = table["messages"].to_pylist(), self.budget
        refuse_unscored(scores, self.by, self.name)
        for place in ranked(ids, scores, self.largest):
            try:
                tokens = len(render_whole(tokenizer, conversations[place] or []))
            except RowFault as fault:
                yield Verdict(ids[place], "filtered", f"cannot be tokenised: {fault.what}")
                continue
            if tokens <= left:
                left -= tokens
                yield Verdict(ids[place])
            else:
                yield Verdict(ids[place], "filtered", "no score" if missing(scores[place]) else "over the budget")
