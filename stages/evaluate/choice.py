"""The most probable label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import InvalidField
from graftline.stages.evaluate.labelled import Labelled
from graftline.stages.evaluate.metric import Asked, Example, Prediction
from graftline.stages.expected import Usage, Volume, prompt_turns

if TYPE_CHECKING:
    from graftline.stages.lm.reader import Reader

MOST = 256
"""Labels found in the rows: more are free text, and every row would be scored with every answer."""
BATCH = 16


class Choice(Labelled):
    """Share of rows whose reference is the label with the largest log-probability as the whole answer.

    Nothing is generated, so format plays no part: a gain in exact match without one here is format alone. Ties go to
    the label first in order; where a log-probability is not a number the row has no label (`not_a_number`). The test
    holds that the figure is the arg-max over a fake engine's numbers.

    Args:
        choices: the labels; None: the distinct answers of the rows, at most 256.

    Raises:
        InvalidField: the rows have more than 256 distinct answers and no `choices` are given.
    """

    method = "evaluate.choice"
    origin = "arg-max of the labels' log-probabilities; no paper"
    figure = "choice"

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        labels = super().labels(examples)
        if self.choices is None and len(labels) > MOST:
            raise InvalidField(
                f"the rows have {len(labels)} distinct answers, more than {MOST}",
                where="Choice.choices",
                do="name the labels, or leave Choice out where answers are free text",
            )
        return labels

    def predict(self, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
        found: list[Prediction] = []
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            scores = asked.engine.choice_logprobs(
                [example.prompt for example in batch], [asked.labels] * len(batch), adapter=asked.adapter
            )
            found += [self.parsed(row, asked.labels) for row in scores]
            asked.tick(len(batch))
        return found

    def expected(self, rows: Volume, reader: Reader, tuned: bool) -> Usage:
        """Each label and its end of turn, after one reading of the prompt."""
        labels = sum(reader.text(label) + 1 for label in self.labels_in(rows))
        scored = rows.total(lambda row: reader.whole(prompt_turns(row), ask=True) + labels)
        return Usage(rows.count, tokens_scored=scored, mark=rows.mark)

    @staticmethod
    def parsed(scores: Sequence[float], labels: Sequence[str]) -> Prediction:
        """The label with the largest of the scores."""
        if any(math.isnan(score) for score in scores):
            return Prediction("", fault="not_a_number")
        best = max(range(len(labels)), key=lambda index: (scores[index], -index))
        return Prediction(labels[best], labels[best])

    def decoding(self, asked: Asked) -> dict[str, Any]:
        return {"labels": len(asked.labels)}
