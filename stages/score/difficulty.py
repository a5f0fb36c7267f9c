"""How much a prompt helps a model to its answer: Instruction-Following Difficulty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from graftline.stages.expected import Expected, Given, Usage, answer_of, product, turns_of, worst
from graftline.stages.lm.reference import refuse_endpoint
from graftline.stages.score.asking import asked, finite, mean, said
from graftline.stages.score.perplexity import perplexity_of, unprompted
from graftline.stages.shapes import Scorer
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Model

if TYPE_CHECKING:
    import pyarrow as pa

Messages = tuple[dict[str, str], ...]


class Difficulty(Scorer):
    """Adds `ifd`, Instruction-Following Difficulty, of each row's last answer under a model.

    The variant is the one of the released Cherry selection: the mean loss of the answer's tokens given the
    conversation (`ifd_prompted`) divided by their mean loss without it (`ifd_alone`), the end of the turn included.
    "Without it" is the same chat template with the text of every earlier turn left empty, so that the answer's tokens
    are the same in both. Above 1 the prompt does not help: those rows are usually dropped and the highest of the rest
    kept, which is a selector's business. Near 0 the answer follows from the prompt (it copies it, say).

    Args:
        model: the model or adapter that is asked; a small one ranks almost as a large one does.
        ratio_of: `loss` divides mean losses (Cherry), `perplexity` divides their exponentials (Superfiltering).

    Missing: rows whose last turn is not an answer, or that do not fit the model's context (nothing is cut).

    The properties its tests check: an answer has the same tokens in both passes, an answer that copies its prompt is
    far below 1, and a row whose prompt is empty is exactly 1.
    """

    method = "score.ifd"
    papers = (Paper("POINTS: Improving Your Vision-language Model with Affordable Strategies"),)
    needs = {"messages": "messages"}
    adds = {"ifd": "float64", "ifd_prompted": "float64", "ifd_alone": "float64"}
    calls_model = True

    model: Model
    ratio_of: Literal["loss", "perplexity"] = "loss"

    def check(self) -> None:
        refuse_endpoint(self.model, where="Difficulty.model", why="it tells no log-probabilities of given text")

    def expected(self, given: Given) -> Expected:
        """Each row is asked about, and each different answer alone."""
        rows, reader = given.rows(self.rows), given.reader(self.model)
        alone = rows.distinct(answer_of)
        scored = (
            rows.total(lambda row: reader.whole(turns_of(row), ask=True)),
            product(alone, rows.mean(lambda row: reader.whole(unprompted(turns_of(row)), ask=True))),
        )
        asked = [Usage(each, tokens_scored=tokens) for each, tokens in zip((rows.count, alone), scored, strict=True)]
        return Expected(rows, replace(asked[0] + asked[1], mark=worst(rows.mark, "~")))

    def score_rows(self, table: pa.Table, context: Context) -> Mapping[str, Sequence[Any]]:
        rows = [said(turns) for turns in table["messages"].to_pylist()]
        # Each conversation once: where answers are labels, many rows share theirs.
        asking = dict.fromkeys(text(each) for row in rows if answers(row) for each in (row, unprompted(row)))
        with context.engine(self.model) as engine:
            values = asked(lambda some: engine.logprobs(some), [messages(each) for each in asking])
        found = dict(zip(asking, values, strict=True))
        pairs = [self._losses(found, row) if answers(row) else (None, None) for row in rows]
        return {
            "ifd": [self._ratio(prompted, alone) for prompted, alone in pairs],
            "ifd_prompted": [prompted for prompted, _ in pairs],
            "ifd_alone": [alone for _, alone in pairs],
        }

    @staticmethod
    def _losses(found: Mapping[Any, list[float] | None], row: Messages) -> tuple[float | None, float | None]:
        alone, prompted = found[text(unprompted(row))], found[text(row)]
        if alone is None or prompted is None:
            return None, None
        # Empty turns have no tokens, so what is left alone is the last answer's, and as many are the row's last ones.
        losses = [mean([-value for value in values]) for values in (prompted[-len(alone) :], alone)]
        return losses[0], losses[1]

    def _ratio(self, prompted: float | None, alone: float | None) -> float | None:
        if prompted is None or alone is None:
            return None
        if self.ratio_of == "perplexity":
            return perplexity_of(prompted - alone)
        return finite(prompted / alone) if alone > 0 else None


def answers(row: Messages) -> bool:
    """Whether the last turn is an answer."""
    return bool(row) and row[-1]["role"] == "assistant" and bool(row[-1]["content"].strip())


def text(row: Messages) -> tuple[tuple[str, str], ...]:
    """A conversation that can be looked up."""
    return tuple((turn["role"], turn["content"]) for turn in row)


def messages(row: tuple[tuple[str, str], ...]) -> Messages:
    return tuple({"role": role, "content": content} for role, content in row)
