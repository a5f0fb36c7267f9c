"""Asking for free answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graftline.stages.errors import EngineFailed
from graftline.stages.evaluate.metric import Asked, Example
from graftline.stages.expected import Usage, Volume, prompt_turns

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Sampling
    from graftline.stages.lm.reader import Reader


def writing(rows: Volume, reader: Reader, most: int, like: float | None = None) -> Usage:
    """What `plan` expects of an answer to each row: of at most so many tokens, `like` so many (None: nothing is
    known)."""
    prompt = rows.mean(lambda row: reader.asked(prompt_turns(row)))
    return reader.usage(rows.count, prompt, reader.written(most, like), rows.mark)


def greedy(asked: Asked, examples: Sequence[Example], max_new_tokens: int) -> list[Answer]:
    """The likeliest answers, in order."""
    from graftline.stages.lm.engine import Sampling

    return answers(asked, examples, [Sampling(temperature=0.0, max_new_tokens=max_new_tokens)] * len(examples))


def answers(asked: Asked, examples: Sequence[Example], samplings: Sequence[Sampling]) -> list[Answer]:
    """One answer an example, in order.

    Raises:
        EngineFailed: an answer was cancelled.
    """
    from graftline.stages.lm.engine import Request

    requests = [
        Request(id=example.id, messages=example.prompt, sampling=sampling, adapter=asked.adapter)
        for example, sampling in zip(examples, samplings, strict=True)
    ]
    found = asked.engine.generate(requests, on_answer=lambda answer: asked.tick(1))
    if any(answer.finish == "cancelled" for answer in found):
        raise EngineFailed("an answer was cancelled", where="Compare", do="run it again")
    return found
