"""Answers checked by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graftline.stages.errors import InvalidField, RequestError, WorldError
from graftline.stages.rows import Columns
from graftline.stages.score.check import Check, Checked
from graftline.stages.score.number import Number
from graftline.stages.shapes import Scorer
from graftline.stages.specification import Paper
from graftline.stages.stage import Context

if TYPE_CHECKING:
    import pyarrow as pa


class Verify(Scorer):
    """Adds `verified`: 1 where a row's response gives the reference, 0 where it does not; and `verified_why`.

    Missing where it cannot be told: the row has no response, its reference is missing or cannot be read, or the check
    itself failed. A response that says nothing readable is wrong, not missing.

    Args:
        by: what counts as right: `Number()`, `Choice()`, `JsonSchema()`, or one of your own.
        against: the column with the reference; None for checks that need none. Of rows as they were read, `answer`
            repeats the last turn: against it, references are checked for being readable.
        response: the column with the response (None: the last turn, where it is the assistant's).

    Raises:
        InvalidField: the check needs a reference, and `against` names none.

    The properties its tests check: a reference verifies itself, and a table of pairs, right and wrong, keeps its
    verdicts.
    """

    method = "score.verify"
    papers = (
        Paper("STaR: Bootstrapping Reasoning With Reasoning"),
        Paper("LLM2LLM: Boosting LLMs with Novel Iterative Data Enhancement"),
        Paper("Embedding Self-Correction as an Inherent Ability in Large Language Models for Enhanced Mathematical"
              " Reasoning"),
        Paper("Learning Math Reasoning from Self-Sampled Correct and Partially-Correct Solutions"),
        Paper("LeTI: Learning to Generate from Textual Interactions"),
        Paper("Boosting Tool Use of Large Language Models via Iterative Reinforced Fine-Tuning"),
    )  # fmt: skip
    adds = {"verified": "int64", "verified_why": "string"}
    specimen: ClassVar[Mapping[str, Any]] = {"against": "answer"}

    by: Check = Number()
    against: str | None = None
    response: str | None = None

    def check(self) -> None:
        if self.by.needs_reference and self.against is None:
            raise InvalidField(
                f"{self.by!r} needs a reference", where="Verify.against", do="name the column that holds it"
            )

    def columns_needed(self) -> Mapping[str, Columns]:
        response = {"messages": "messages"} if self.response is None else {self.response: "string"}
        return {"rows": response if self.against is None else {**response, self.against: "string"}}

    def score_rows(self, table: pa.Table, context: Context) -> Mapping[str, Sequence[Any]]:
        if self.response is None:
            responses = [last_answer(turns) for turns in table["messages"].to_pylist()]
        else:
            responses = table[self.response].to_pylist()
        references = [None] * table.num_rows if self.against is None else table[self.against].to_pylist()
        found = [
            Checked(None, "has no response") if response is None else self._checked(response, reference)
            for response, reference in zip(responses, references, strict=True)
        ]
        return {"verified": [each.verified for each in found], "verified_why": [each.why or None for each in found]}

    def _checked(self, response: str, reference: str | None) -> Checked:
        try:
            return self.by.checked(response, reference)
        except (RequestError, WorldError):
            raise
        except Exception as error:  # a check that failed says nothing about the row
            return Checked(None, f"the check failed: {type(error).__name__}: {error}"[:200])


def last_answer(turns: Sequence[Mapping[str, Any]] | None) -> str | None:
    """The text of the last turn, where it is the assistant's."""
    return turns[-1]["content"] if turns and turns[-1]["role"] == "assistant" else None
