"""How different answers are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.evaluate import interval
from graftline.stages.evaluate.asking import answers, writing
from graftline.stages.evaluate.metric import Asked, Example, Metric, Prediction
from graftline.stages.expected import Usage, Volume
from graftline.stages.rows import derived_seed
from graftline.stages.specification import Paper

if TYPE_CHECKING:
    from graftline.stages.lm.reader import Reader

ORDERS = range(1, 6)
WORD = re.compile(r"\w+|[^\w\s]")


class Diversity(Metric):
    """Expectation-adjusted distinct n-grams (EAD) over the answers to all prompts, one sampled answer each, as a mean
    over n = 1 to 5: distinct n-grams, divided by as many as so many drawn at random would have. Unlike the plain
    share of distinct n-grams it hardly falls with the answers' length. 0 to about 1; larger is more diverse.

    The interval leaves groups of rows out one at a time (jackknife): drawing rows twice would make them less diverse.
    Columns are comparable only at one temperature, which is therefore this metric's, not a model's.

    Args:
        temperature: of the answers.
        max_new_tokens: of an answer.
        vocabulary: words to draw from, in the expectation; one number for all columns, since tokenizers differ.
        seed: of the answers, with each row's id.

    Property tested: equal answers have the least; doubled in length, texts lose less than their plain share does; one
    answer a prompt is asked for.
    """

    method = "evaluate.diversity"
    papers = (Paper("Understanding the Effects of RLHF on LLM Generalisation and Diversity"),)
    figure = "diversity"
    judges: ClassVar[bool] = False

    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    vocabulary: Annotated[int, Field(ge=2)] = 50_000
    seed: int = 0

    def predict(self, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
        from graftline.stages.lm.engine import Sampling

        samplings = [
            Sampling(
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                seed=derived_seed(self.seed, example.id) % 2**31,
            )
            for example in examples
        ]
        return [Prediction(answer.text) for answer in answers(asked, examples, samplings)]

    def expected(self, rows: Volume, reader: Reader, tuned: bool) -> Usage:
        return writing(rows, reader, self.max_new_tokens)

    def cell(
        self, predictions: Sequence[Prediction], examples: Sequence[Example], cluster: Sequence[int], seed: int
    ) -> dict[str, Any]:
        return interval.jackknife(self._among(predictions), cluster)

    def gain(
        self, before: Sequence[Prediction], after: Sequence[Prediction], examples: Sequence[Example],
        cluster: Sequence[int], seed: int,
    ) -> dict[str, Any]:  # fmt: skip
        one, other = self._among(before), self._among(after)
        return interval.jackknife(lambda places: other(places) - one(places), cluster)

    def decoding(self, asked: Asked) -> dict[str, Any]:
        return {"diversity.temperature": self.temperature, "diversity.max_new_tokens": self.max_new_tokens}

    def _among(self, predictions: Sequence[Prediction]) -> Callable[[Sequence[int]], float]:
        words = [WORD.findall(each.text.casefold()) for each in predictions]
        return lambda places: adjusted([words[place] for place in places], self.vocabulary)


def adjusted(texts: Sequence[Sequence[str]], vocabulary: int) -> float:
    """EAD of texts as words, a mean over the orders that some text is long enough for (0 where none is)."""
    found = []
    for order in ORDERS:
        grams = [tuple(text[at : at + order]) for text in texts for at in range(len(text) - order + 1)]
        if grams:
            expected = vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** len(grams))
            found.append(len(set(grams)) / expected)
    return sum(found) / len(found) if found else 0.0
