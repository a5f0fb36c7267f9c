"""What a router learns from where targets were tried: how well each did on a prompt, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.errors import InvalidField, NothingKept
from graftline.stages.rows import Columns, join_groups, user_text
from graftline.stages.score.embedding import COLUMN
from graftline.stages.score.verify import last_answer
from graftline.stages.serve.route.price import Price, counted, money
from graftline.stages.specification import Plug

if TYPE_CHECKING:
    import numpy as np

    from graftline.stages.artefact import Artefact

WORDS = {"true": 1.0, "false": 0.0}


class Tried(Plug):
    """Says that a router's rows are answers of the targets themselves, and where these rows tell how good they were.
    Prompts are the same where the user says the same; a target need not have been tried on all of them.

    Args:
        quality: the column that says how good the answer is, 0 to 1 (`verified`; also true and false, and numbers
            read from a file as text). Of several answers to a prompt the mean counts; where it is missing, the target
            counts as not tried, so let what was cut off or left unanswered stand in the rows, as wrong.
        prices: target → what its tokens cost; the cost of an answer is then estimated. None: `Route.costs`.
        tokens_out: the column with the tokens of the answer (None: about four bytes of the last turn each).
        dearest: what an answer costs that counts as cost 1, in the prices' currency. None: the most that an answer cost
            in these rows, of targets that no other is better and cheaper than: one more of those that are not worth
            their price changes no choice between the others.

    Raises:
        InvalidField: a field needs `prices`, and there are none.
    """

    origin = "the table that CARROT is fitted on, no method"
    specimen: ClassVar[Mapping[str, str]] = {"quality": "answer"}

    quality: str
    prices: Annotated[Mapping[str, Price], Field(min_length=1)] | None = None
    tokens_out: str | None = None
    dearest: Annotated[float, Field(gt=0)] | None = None

    def check(self) -> None:
        for name in ("tokens_out", "dearest"):
            if getattr(self, name) is not None and self.prices is None:
                raise InvalidField("nothing is priced by tokens", where=f"Tried.{name}", do="give prices, or drop it")

    @property
    def columns(self) -> Columns:
        """What rows must have."""
        return {name: "any" for name in (self.quality, self.tokens_out) if name is not None}

    def read(self, rows: Mapping[str, Artefact], targets: Sequence[str]) -> Outcomes:
        """The table of what was tried, sorted by prompt, so that neither a target more nor the rows' order changes it.

        Args:
            rows: target → its rows with their embeddings.
            targets: all of the router's, by id.

        Raises:
            InvalidField: a value is no number, or lies outside.
            NothingKept: a target was tried on nothing, or the length of none of its answers is known.
        """
        import numpy as np

        from graftline.stages.evaluate.interval import clusters

        vectors: dict[str, Any] = {}
        groups: dict[str, list[str]] = {}
        cells: dict[tuple[str, int], list[tuple[float, float]]] = {}
        names = list(dict.fromkeys(["id", "group", "messages", COLUMN, *self.columns]))
        for target, made in rows.items():
            for row in made.rows(names).to_pylist():
                good = self._number(row, self.quality, 1.0)
                if row[COLUMN] is None or math.isnan(good):
                    continue
                text = user_text(row["messages"]).strip()
                vectors.setdefault(text, row[COLUMN])
                groups.setdefault(text, []).append(row["group"] or row["id"])
                cells.setdefault((text, targets.index(target)), []).append((good, self._tokens(row)))
        prompts = {text: place for place, text in enumerate(sorted(vectors))}
        quality, tokens_out = (np.full((len(prompts), len(targets)), np.nan) for _ in range(2))
        for (text, at), found in cells.items():
            each = np.asarray(found)
            counts = each[~np.isnan(each[:, 1]), 1]
            quality[prompts[text], at] = each[:, 0].mean()
            tokens_out[prompts[text], at] = counts.mean() if len(counts) else np.nan
        self._refuse_untried(rows, targets, quality, tokens_out)
        return Outcomes(
            vectors=np.asarray([vectors[text] for text in prompts], np.float32),
            groups=np.asarray(clusters([join_groups(groups[text]) for text in prompts])),
            quality=quality,
            tokens_in=np.asarray([counted(text) for text in prompts], float),
            tokens_out=tokens_out,
        )

    def _refuse_untried(
        self, rows: Mapping[str, Artefact], targets: Sequence[str], quality: np.ndarray, tokens_out: np.ndarray
    ) -> None:
        import numpy as np

        for target in rows:
            at = targets.index(target)
            if np.isnan(quality[:, at]).all():
                raise NothingKept(f"no row of {target} says how good it was", where="Tried.quality", do="try it first")
            if self.prices is not None and np.isnan(tokens_out[:, at]).all():
                raise NothingKept(
                    f"no row of {target} has an answer whose tokens could be counted", where="Tried.tokens_out",
                    do="name the column with their number",
                )  # fmt: skip

    def _tokens(self, row: Mapping[str, Any]) -> float:
        if self.tokens_out is not None:
            return self._number(row, self.tokens_out, math.inf)
        answer = last_answer(row["messages"])
        return math.nan if answer is None else float(counted(answer))

    def _number(self, row: Mapping[str, Any], column: str, most: float) -> float:
        """A row's number, nan where it is missing."""
        value = row[column]
        if isinstance(value, str):
            value = WORDS.get(value.strip().lower(), value.strip())
        try:
            number = math.nan if value in (None, "") else float(value)
        except (TypeError, ValueError):
            number = -1.0
        if number < 0 or number > most or math.isinf(number):
            raise InvalidField(
                f"row {row['id']} has {value!r} in {column!r}", where=type(self).__name__,
                do="name a column of numbers " + ("from 0 to 1" if most == 1 else "of tokens, from 0"),
            )  # fmt: skip
        return number

    def paid(self, outcomes: Outcomes, targets: Sequence[str]) -> tuple[dict[str, Any], np.ndarray]:
        """How costs are counted, as plain values, and what each answer of the table cost by that.

        Returns:
            `input` and `output` (prices by target) and `dearest`; [prompts, targets], nan where not tried.
        """
        import numpy as np

        prices = [(self.prices or {})[target] for target in targets]
        price_in, price_out = np.array([each.input for each in prices]), np.array([each.output for each in prices])
        cost = money(price_in, price_out, outcomes.tokens_in, outcomes.tokens_out)
        dearest = self.dearest or dearest_of(outcomes.quality, cost) or 1.0  # of targets that are free, any will do
        scale = {"input": price_in.tolist(), "output": price_out.tolist(), "dearest": dearest}
        return scale, cost / dearest


@dataclass(frozen=True)
class Outcomes:
    """What targets made of prompts.

    Args:
        vectors: [prompts, width], the prompts' embeddings.
        groups: [prompts], numbers; prompts of one group count as one source.
        quality: [prompts, targets], 0 to 1; nan where a target was not tried.
        tokens_in: [prompts].
        tokens_out: [prompts, targets]; nan where not known.
    """

    vectors: np.ndarray
    groups: np.ndarray
    quality: np.ndarray
    tokens_in: np.ndarray
    tokens_out: np.ndarray

    def at(self, places: np.ndarray) -> Outcomes:
        """Those of some prompts."""
        return Outcomes(**{each.name: getattr(self, each.name)[places] for each in fields(self)})


def dearest_of(quality: np.ndarray, cost: np.ndarray) -> float:
    """The most that an answer cost, of targets that none dominates: no other is as good and as cheap, and better in
    one of the two, over the prompts that both were tried on. (Of no such target, which takes three that were tried on
    different prompts, the most of all.)

    Args:
        quality, cost: [prompts, targets], nan where not tried.
    """
    import numpy as np

    def dominates(one: int, other: int) -> bool:
        both = ~np.isnan(quality[:, one] + cost[:, one] + quality[:, other] + cost[:, other])
        if not both.any():
            return False
        better = quality[both, one].mean() - quality[both, other].mean()
        cheaper = cost[both, other].mean() - cost[both, one].mean()
        return bool(better >= 0 and cheaper >= 0 and better + cheaper > 0)

    everyone = range(quality.shape[1])
    front = [other for other in everyone if not any(dominates(one, other) for one in everyone if one != other)]
    return float(np.nanmax(cost[:, front or list(everyone)]))
