"""What `plan` expects of a stage before it has run: how many rows it makes, and what it has models read and write.

Rows travel down the graph as a number and a sample of real ones that stand for all, so that a stage may build the very
requests it is going to send and have their tokens counted with the model's own tokenizer. The promise is a factor of
two. A share that nobody can know stays at its bound and is marked so; what cannot be told at all is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from graftline.stages.lm.reader import Reader
    from graftline.stages.stage import Stage

Mark = Literal["", "~", "<="]
"""How well a number is known: counted, or asked for; expected; at most so much."""
MARKS: tuple[Mark, ...] = ("", "~", "<=")
SAMPLE = 128
"""Rows of a sample, at most."""
FILLER = " the"
"""One token in any tokenizer that knows English; repeated, it stands for a text that is not written yet."""
AMOUNTS = ("requests", "tokens_in", "tokens_out", "tokens_scored", "tokens_trained", "money")
"""What is counted of models, under the names it has in plans, manifests and a run's record."""

Row = Mapping[str, Any]


def worst(*marks: Mark) -> Mark:
    """The mark of a number that several others were needed for."""
    return max(marks, key=MARKS.index, default="")


def product(*factors: float | None) -> int | None:
    """A product, rounded up; None where a factor is not known and none is 0."""
    if 0 in factors:
        return 0
    return None if None in factors else math.ceil(math.prod(each for each in factors if each is not None) - 1e-9)


@dataclass(frozen=True)
class Usage:
    """What models are asked for; None: not known.

    Args:
        requests: questions put to a model.
        tokens_in: tokens of the prompts that it answers by writing.
        tokens_out: tokens that it writes.
        tokens_scored: tokens of text whose log-probabilities are asked for, the prompts' included.
        tokens_trained: tokens that steps of training read, as often as they do.
        money: in the currency of the endpoint's prices.
        mark: how well the requests are known; tokens are expectations at best.
    """

    requests: int | None = 0
    tokens_in: int | None = 0
    tokens_out: int | None = 0
    tokens_scored: int | None = 0
    tokens_trained: int | None = 0
    money: float | None = 0.0
    mark: Mark = ""

    def __add__(self, other: Usage) -> Usage:
        sums: dict[str, Any] = {}
        for name in AMOUNTS:
            one, two = getattr(self, name), getattr(other, name)
            sums[name] = None if one is None or two is None else one + two
        return Usage(**sums, mark=worst(self.mark, other.mark))

    def times(self, times: float, mark: Mark = "") -> Usage:
        """So often this."""
        found: dict[str, Any] = {name: product(getattr(self, name), times) for name in AMOUNTS if name != "money"}
        return Usage(**found, money=None if self.money is None else self.money * times, mark=worst(self.mark, mark))

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in AMOUNTS}


UNKNOWN = Usage(None, None, None, None, None, None, "~")


@dataclass(frozen=True)
class Volume:
    """Rows that are not there yet.

    Args:
        count: how many; None: not known.
        sample: some rows like them, at most `SAMPLE`: their texts, without ids.
        mark: how well the number is known.
    """

    count: int | None = None
    sample: tuple[Row, ...] = ()
    mark: Mark = ""

    def mean(self, measure: Callable[[Row], float]) -> float | None:
        """The mean of a number that rows have; None without a sample."""
        return average([measure(row) for row in self.sample])

    def total(self, measure: Callable[[Row], float]) -> int | None:
        """What such a number comes to over all rows."""
        return product(self.count, self.mean(measure))

    def groups(self, of: Callable[[Row], Hashable]) -> int | None:
        """How many groups all rows fall into by a value, each as large as in the sample."""
        if not self.sample:
            return None
        return product(self.count, len({of(row) for row in self.sample}) / len(self.sample))

    def distinct(self, of: Callable[[Row], Hashable]) -> int | None:
        """How many different values all rows have: where a sample repeats them, as with labels, those in it, else the
        same share of all."""
        if self.count is None or not self.sample:
            return self.count
        found, seen = len({of(row) for row in self.sample}), len(self.sample)
        return min(found, self.count) if found <= seen / 2 else product(self.count, found / seen)

    def share(self, share: float, mark: Mark) -> Volume:
        """That share of the rows."""
        return replace(self, count=product(self.count, share), mark=worst(self.mark, mark))

    def only(self, fits: Callable[[Row], bool]) -> Volume:
        """The rows that fit."""
        fitting = tuple(row for row in self.sample if fits(row))
        if len(fitting) == len(self.sample):
            return self
        kept = self.share(len(fitting) / len(self.sample), "~")
        return replace(kept, sample=fitting)

    def at_most(self, most: int | None, mark: Mark = "") -> Volume:
        """Not more rows than so many."""
        if most is None or self.count is None or self.count <= most:
            return self
        return replace(self, count=most, mark=worst(self.mark, mark))

    def like(self, count: int | None, mark: Mark, change: Callable[[Row], Row] = lambda row: row) -> Volume:
        """Other rows, made from these: `change` says how one of them looks."""
        return Volume(count, tuple(map(change, self.sample)), mark)


def together(volumes: Sequence[Volume]) -> Volume:
    """All rows of several; the sample has of each as it has rows."""
    counts = [each.count for each in volumes]
    total = None if None in counts else sum(each or 0 for each in counts)
    sample: list[Row] = []
    for each in volumes:
        part = len(each.sample) if len(volumes) == 1 else SAMPLE // len(volumes)
        if total and each.count is not None and len(volumes) > 1:
            part = math.ceil(SAMPLE * each.count / total)
        sample += spread(each.sample, part)
    return Volume(total, tuple(sample[:SAMPLE]), worst(*(each.mark for each in volumes)))


def average(numbers: Sequence[float]) -> float | None:
    """The mean; None of none."""
    return math.fsum(numbers) / len(numbers) if numbers else None


def spread(rows: Sequence[Row], most: int = SAMPLE) -> list[Row]:
    """At most so many rows, from all over."""
    if len(rows) <= most:
        return list(rows)
    return [rows[place * len(rows) // most] for place in range(most)]


@dataclass(frozen=True)
class Expected:
    """What is expected of a stage.

    Args:
        rows: those it makes (of a stage with parts: part → rows); None where it makes no rows.
        usage: what models are asked for, by itself alone.
        times: how often each of the stages that it foresees is made, which the plan looks at once.
        times_mark: how well that is known.
    """

    rows: Volume | Mapping[str, Volume] | None = None
    usage: Usage = Usage()
    times: float = 1.0
    times_mark: Mark = ""

    @property
    def volume(self) -> Volume:
        """All rows it makes."""
        return together(tuple(self.rows.values())) if isinstance(self.rows, Mapping) else self.rows or Volume()


@dataclass(frozen=True)
class Given:
    """What a stage is told when it is asked what it expects.

    Args:
        volumes: key of a stage → the rows it is expected to make.
        file: makes a path that a stage names absolute.
        directory: the files of a model, where they are on this disk already.
    """

    volumes: Mapping[str, Volume] = field(default_factory=dict)
    file: Callable[[str], str] = str
    directory: Callable[[Stage], Path | None] = lambda model: None
    _readers: dict[str, Reader] = field(default_factory=dict)

    def rows(self, *stages: Stage) -> Volume:
        """The rows of these stages."""
        return together([self.volumes.get(stage.key, Volume()) for stage in stages])

    def reader(self, model: Stage) -> Reader:
        """Who counts tokens as a model reads and writes them."""
        from graftline.stages.lm.reader import reader_of, root_of

        root = root_of(model)
        key = "" if root is None else root.key
        if key not in self._readers:
            self._readers[key] = reader_of(root, self.directory)
        return self._readers[key]


def turns_of(row: Row, text: str = "messages") -> tuple[dict[str, str], ...]:
    """A row's conversation as engines take it."""
    return tuple({"role": turn["role"] or "", "content": turn["content"] or ""} for turn in row.get(text) or ())


def prompt_turns(row: Row) -> tuple[dict[str, str], ...]:
    """A row's conversation up to its final assistant turn; of a preference row, its prompt."""
    turns = turns_of(row) or turns_of(row, "prompt")
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns


def answer_of(row: Row) -> str:
    """A row's final assistant turn ("" where it has none)."""
    turns = turns_of(row)
    return turns[-1]["content"] if turns and turns[-1]["role"] == "assistant" else ""


def pair_tokens(row: Row, reader: Reader) -> tuple[float, float]:
    """Tokens of a preference row's prompt with either answer."""
    found = []
    for name in ("chosen", "rejected"):
        answer = {"role": "assistant", "content": row.get(name) or ""}
        found.append(reader.whole((*turns_of(row, "prompt"), answer)))
    return found[0], found[1]


def unanswered(row: Row) -> Row:
    """A row without its answer."""
    return {**row, "messages": prompt_turns(row), "answer": None}


def answered(row: Row, tokens: float) -> Row:
    """A row with an answer of so many tokens in place of its own, which is not written yet."""
    text = (FILLER * max(1, round(tokens))).strip()
    return {**row, "messages": [*prompt_turns(row), {"role": "assistant", "content": text}], "answer": text}
