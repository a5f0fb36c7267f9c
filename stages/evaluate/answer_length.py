"""How long answers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.evaluate import measured
from graftline.stages.evaluate.asking import greedy, writing
from graftline.stages.evaluate.metric import Asked, Example, Metric, Prediction
from graftline.stages.expected import Usage, Volume

if TYPE_CHECKING:
    from graftline.stages.lm.reader import Reader


class AnswerLength(Metric):
    """Mean tokens of the greedy answers, the end-of-turn token included, and `cut_off`, the share that did not end by
    itself within `max_new_tokens` (each of which counts as that long). The test holds both on a table of answers.

    Args:
        max_new_tokens: of an answer.
    """

    method = "evaluate.answer_length"
    origin = "a count of tokens; no paper"
    figure = "answer_length"
    also: ClassVar[tuple[str, ...]] = ("cut_off",)
    judges = False

    max_new_tokens: Annotated[int, Field(ge=1)] = 64

    def predict(self, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
        return [
            Prediction(
                answer.text, value=float(answer.tokens_out), fault="" if answer.finish == "stop" else "truncated"
            )
            for answer in greedy(asked, examples, self.max_new_tokens)
        ]

    def expected(self, rows: Volume, reader: Reader, tuned: bool) -> Usage:
        return writing(rows, reader, self.max_new_tokens)

    def cell(
        self, predictions: Sequence[Prediction], examples: Sequence[Example], cluster: Sequence[int], seed: int
    ) -> dict[str, Any]:
        cut = sum(each.fault == "truncated" for each in predictions)
        return {**measured.mean(predictions, cluster, seed), "cut_off": cut / len(predictions)}

    def gain(
        self, before: Sequence[Prediction], after: Sequence[Prediction], examples: Sequence[Example],
        cluster: Sequence[int], seed: int,
    ) -> dict[str, Any]:  # fmt: skip
        return measured.gain(before, after, cluster, seed)

    def decoding(self, asked: Asked) -> dict[str, Any]:
        return {"answer_length.max_new_tokens": self.max_new_tokens}
