"""Loss and perplexity of the reference answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graftline.stages.evaluate import measured
from graftline.stages.evaluate.metric import Asked, Example, Metric, Prediction
from graftline.stages.expected import Row, Usage, Volume, prompt_turns, turns_of

if TYPE_CHECKING:
    from graftline.stages.lm.reader import Reader

BATCH = 16


class Loss(Metric):
    """Mean cross entropy of the reference answers in nats a token, the end of the turn included, and its exponential,
    `perplexity`. Every token counts alike, so a long answer counts for more than a short one; earlier turns count
    for nothing. Smaller is better: of a gain, what is below 0. Models with other tokenizers have other tokens, and
    cannot be compared so. The test holds it against the arithmetic of known log-probabilities.
    """

    method = "evaluate.loss"
    origin = "cross entropy of held-out answers; no paper"
    figure = "loss"
    also: ClassVar[tuple[str, ...]] = ("perplexity",)
    judges = False

    def predict(self, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
        found: list[Prediction] = []
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            rows = [[*each.prompt, {"role": "assistant", "content": each.reference}] for each in batch]
            talked = [
                place for place, each in enumerate(batch) if any(turn["role"] == "assistant" for turn in each.prompt)
            ]
            earlier = dict.fromkeys(range(len(batch)), 0)
            if talked:
                told = asked.engine.logprobs([batch[place].prompt for place in talked], adapter=asked.adapter)
                earlier |= {place: len(each) for place, each in zip(talked, told, strict=True)}
            for place, each in enumerate(asked.engine.logprobs(rows, adapter=asked.adapter)):
                own = each[earlier[place] :]
                mean = -sum(own) / len(own)
                known = math.isfinite(mean)
                fault = "" if known else "not_a_number"
                found.append(Prediction("", fault=fault, value=mean if known else None, weight=float(len(own))))
            asked.tick(len(batch))
        return found

    def expected(self, rows: Volume, reader: Reader, tuned: bool) -> Usage:
        """Where an assistant spoke before, what was said until then is scored, too."""

        def earlier(row: Row) -> bool:
            return any(turn["role"] == "assistant" for turn in prompt_turns(row))

        talked = rows.only(earlier)
        scored = rows.total(lambda row: reader.whole(turns_of(row), ask=True))
        again = talked.total(lambda row: reader.whole(prompt_turns(row), ask=True))
        if not talked.sample:
            return Usage(rows.count, tokens_scored=scored, mark=rows.mark)
        return Usage(rows.count, tokens_scored=scored, mark=rows.mark) + Usage(
            talked.count, tokens_scored=again, mark=talked.mark
        )

    def cell(
        self, predictions: Sequence[Prediction], examples: Sequence[Example], cluster: Sequence[int], seed: int
    ) -> dict[str, Any]:
        found = measured.mean(predictions, cluster, seed)
        return {**found, "perplexity": math.exp(found["value"])}

    def gain(
        self, before: Sequence[Prediction], after: Sequence[Prediction], examples: Sequence[Example],
        cluster: Sequence[int], seed: int,
    ) -> dict[str, Any]:  # fmt: skip
        return measured.gain(before, after, cluster, seed)
