"""How likely a model finds a row's answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from graftline.stages.errors import InvalidField
from graftline.stages.expected import Expected, Given, Row, Usage, turns_of
from graftline.stages.lm.reference import refuse_endpoint
from graftline.stages.score.asking import asked, mean, said
from graftline.stages.shapes import Scorer
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Model

if TYPE_CHECKING:
    import pyarrow as pa


class Perplexity(Scorer):
    """Adds a model's perplexity of each row, and the mean log-probability of its tokens.

    A token's loss is −log p(token | all before it), natural; `logprob_mean` is its negated mean over the tokens
    scored, `perplexity` is exp(−logprob_mean), and the loss summed is −logprob_mean · `perplexity_tokens`. Nothing is
    cut: a row longer than the model's context, or without what is scored of it, is missing in all three.

    Args:
        model: the model or adapter that is asked; of GRAPE and its kind, the one that will be trained.
        of: which tokens: `answer`, those of all the assistant's turns given what is before them; `last`, those of the
            last turn alone, an assistant's, given all before it: what responses to one prompt are compared by;
            `alone`, those of the last turn with the text of all before it left empty; `text`, all of the rendered
            conversation but its first token, the chat template's own included.
        end_of_turn: whether the last turn's end counts as a token.

    The properties its tests check: the numbers equal `model(labels=…)` on the row alone, whatever the batch; the sums
    over two turns add up, so that of the last turn alone is what the earlier ones leave of all; without `end_of_turn`
    there is one token less.
    """

    method = "score.perplexity"
    papers = (
        Paper("POINTS: Improving Your Vision-language Model with Affordable Strategies"),
        Paper("Instruction Mining: High-Quality Instruction Data Selection for Large Language Models"),
        Paper("Boosting Tool Use of Large Language Models via Iterative Reinforced Fine-Tuning"),
    )
    needs = {"messages": "messages"}
    adds = {"perplexity": "float64", "logprob_mean": "float64", "perplexity_tokens": "int64"}
    calls_model = True

    model: Model
    of: Literal["answer", "last", "alone", "text"] = "answer"
    end_of_turn: bool = True

    def check(self) -> None:
        refuse_endpoint(self.model, where="Perplexity.model", why="it tells no log-probabilities of given text")
        if self.of == "text" and not self.end_of_turn:
            raise InvalidField(
                "of the whole text every token counts", where="Perplexity.end_of_turn", do="leave it, or score answers"
            )

    def expected(self, given: Given) -> Expected:
        rows, reader = given.rows(self.rows), given.reader(self.model)

        def scored(row: Row) -> float:
            turns = turns_of(row)
            return reader.whole(unprompted(turns) if self.of == "alone" else turns, ask=True)

        return Expected(rows, Usage(rows.count, tokens_scored=rows.total(scored), mark=rows.mark))

    def score_rows(self, table: pa.Table, context: Context) -> Mapping[str, Sequence[Any]]:
        rows = [said(turns) for turns in table["messages"].to_pylist()]
        if self.of == "alone":
            rows = [unprompted(row) for row in rows]
        with context.engine(self.model) as engine:
            found = asked(lambda some: engine.logprobs(some, whole=self.of == "text", last=self.of == "last"), rows)
        if not self.end_of_turn:
            found = [values[:-1] if values else values for values in found]
        means = [mean(values) for values in found]
        return {
            "perplexity": [None if value is None else perplexity_of(-value) for value in means],
            "logprob_mean": means,
            "perplexity_tokens": [
                None if value is None or values is None else len(values)
                for value, values in zip(means, found, strict=True)
            ],
        }


def perplexity_of(loss: float) -> float | None:
    """exp(loss); None where that is too large for a number."""
    return math.exp(loss) if loss < 709 else None


def unprompted(row: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], ...]:
    """The conversation with the text of every turn but the last left empty: the same roles, so that any chat template
    takes it, and nothing said."""
    return (*({**turn, "content": ""} for turn in row[:-1]), *map(dict, row[-1:]))
