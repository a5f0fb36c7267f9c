"""Accuracy of free answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.evaluate.asking import greedy, writing
from graftline.stages.evaluate.metric import Asked, Example, Metric, Prediction
from graftline.stages.expected import Usage, Volume
from graftline.stages.score.check import Check
from graftline.stages.score.number import Number

if TYPE_CHECKING:
    from graftline.stages.lm.reader import Reader


class AnswerAccuracy(Metric):
    """Share of rows whose free answer gives the reference, as a check finds it there: the number or the choice that the
    answer marks or ends with, JSON of a schema. Unlike in `ExactMatch`, the answer may say more than that.

    Answers are greedy; one that was cut off is wrong, even where a number stands in what there is, for it is one on
    the way. A row whose reference the check cannot read is missing, not wrong. The test holds a table of answers.

    Args:
        by: finds the answer and compares it: `score.Number()`, `score.Choice()`, `score.JsonSchema()`, or your own.
        max_new_tokens: of an answer.
    """

    method = "evaluate.answer_accuracy"
    origin = "a verifier's verdict on free answers; no paper"
    figure = "answer_accuracy"

    by: Check = Number()
    max_new_tokens: Annotated[int, Field(ge=1)] = 256

    def predict(self, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
        return [self.parsed(answer.text, answer.finish) for answer in greedy(asked, examples, self.max_new_tokens)]

    def expected(self, rows: Volume, reader: Reader, tuned: bool) -> Usage:
        return writing(rows, reader, self.max_new_tokens)

    @staticmethod
    def parsed(text: str, finish: str) -> Prediction:
        """An answer, and what is wrong with it beside its value: `truncated`, `empty`."""
        if finish != "stop":
            return Prediction(text, fault="truncated")
        return Prediction(text, fault="" if text.strip() else "empty")

    def correct(self, prediction: Prediction, example: Example) -> bool | None:
        found = self.by.checked("" if prediction.fault else prediction.text, example.reference).verified
        return None if found is None else found == 1 and not prediction.fault

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """None: answers are free."""
        return ()

    def decoding(self, asked: Asked) -> dict[str, Any]:
        return {"answer_accuracy.max_new_tokens": self.max_new_tokens}
