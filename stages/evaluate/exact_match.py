"""Exact match of generated answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import EngineFailed
from graftline.stages.evaluate.asking import writing
from graftline.stages.evaluate.labelled import Labelled
from graftline.stages.evaluate.metric import Asked, Example, Prediction
from graftline.stages.evaluate.text import normalised
from graftline.stages.expected import Usage, Volume, answer_of

if TYPE_CHECKING:
    from graftline.stages.lm.reader import Reader

SPARE = 4
"""Tokens beyond the longest label: room for final punctuation and the end of the turn, not for an explanation."""


class ExactMatch(Labelled):
    """Share of rows whose whole first answer is the reference: both NFKC, case-folded, without outer space and final
    punctuation.

    Answers are greedy, stop at the end of the turn and have at most the longest label's tokens + 4; an answer cut off
    there is wrong even where its beginning is right. What does not parse is counted, by cause: `empty`, `truncated`,
    `not_a_label`. The test holds a table of spellings, and that truncation counts as wrong.

    Args:
        choices: the labels; None: the distinct answers of the rows.
    """

    method = "evaluate.exact_match"
    origin = "string comparison; no paper"
    figure = "exact_match"

    def predict(self, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
        from graftline.stages.lm.engine import Request, Sampling

        sampling = Sampling(temperature=0.0, max_new_tokens=_most(asked))
        requests = [
            Request(id=example.id, messages=example.prompt, sampling=sampling, adapter=asked.adapter)
            for example in examples
        ]
        answers = asked.engine.generate(requests, on_answer=lambda answer: asked.tick(1))
        return [self.parsed(answer.text, answer.finish, asked.labels) for answer in answers]

    def expected(self, rows: Volume, reader: Reader, tuned: bool) -> Usage:
        """An untuned model does not stop at a label."""
        most = round(max(map(reader.text, self.labels_in(rows)), default=1)) + SPARE
        return writing(rows, reader, most, rows.mean(lambda row: reader.text(answer_of(row))) if tuned else most)

    @staticmethod
    def parsed(text: str, finish: str, labels: Sequence[str]) -> Prediction:
        """What an answer stands for.

        Raises:
            EngineFailed: for an answer that was cancelled.
        """
        if finish == "cancelled":
            raise EngineFailed("an answer was cancelled", where="ExactMatch", do="run it again")
        if finish != "stop":
            return Prediction(text, fault="truncated")
        if not text.strip():
            return Prediction(text, fault="empty")
        known = {normalised(label): label for label in labels}
        label = known.get(normalised(text), "")
        return Prediction(text, label, "" if label else "not_a_label")

    def decoding(self, asked: Asked) -> dict[str, Any]:
        return {"temperature": 0.0, "max_new_tokens": _most(asked), "stop": "end of turn"}


def _most(asked: Asked) -> int:
    return asked.longest(asked.labels) + SPARE
