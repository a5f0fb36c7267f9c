"""What becomes of drafts: each is taken in order, and compared with all that was taken before it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graftline.stages.generate.rouge import Pool, words
from graftline.stages.rows import join_groups, row_id
from graftline.stages.shapes import Made, RoundsState

CONFLICT = "another text like it has another answer"


@dataclass(frozen=True, slots=True)
class Seed:
    """A row to learn from: its last user turn, its answer, and the system message before it."""

    id: str
    group: str
    text: str
    answer: str
    system: str | None


@dataclass(slots=True)
class Draft:
    """A text written for an answer; `reason` is empty while it is kept."""

    row: dict[str, Any]
    answer: str
    reason: str


@dataclass
class Drafts(RoundsState):
    """All drafts so far.

    Args:
        model: the teacher's name.
        seeds: answer → seeds.
        wanted: answer → how many drafts are to be kept.
        novelty: the largest ROUGE-L F to any other text, 0 to 1.
    """

    model: str = ""
    seeds: Mapping[str, Sequence[Seed]] = field(default_factory=dict)
    wanted: Mapping[str, int] = field(default_factory=dict)
    novelty: float = 0.7
    pool: Pool = field(default_factory=Pool)
    asked: dict[str, tuple[str, tuple[Seed, ...]]] = field(default_factory=dict)
    """Request → the answer it is for, and the examples it shows."""
    kept: Counter[str] = field(default_factory=Counter)
    good: Counter[str] = field(default_factory=Counter)
    """Answer → drafts that kept every rule, also those above the number wanted."""
    taken: Counter[str] = field(default_factory=Counter)
    drafts: list[Draft] = field(default_factory=list)
    _same: defaultdict[str, list[Draft]] = field(default_factory=lambda: defaultdict(list))
    _ids: Counter[str] = field(default_factory=Counter)

    def take(self, text: str, answer: str, shown: Sequence[Seed], gen: Mapping[str, Any], broken: str) -> None:
        """Take one draft in.

        Args:
            text: the draft.
            answer: what it was written for.
            shown: the seeds the teacher saw, its parents.
            gen: where it comes from (round and seed).
            broken: the rule it breaks ("" if none).
        """
        row = self._row(text, answer, shown, gen)
        draft = Draft(row, answer, broken)
        self.drafts.append(draft)
        self.taken[answer] += 1
        if broken:
            return
        same = self._same[_key(text)]
        others = {other.answer for other in same} | {
            seed.answer for seeds in self.seeds.values() for seed in seeds if _key(seed.text) == _key(text)
        }
        same.append(draft)
        if others - {answer}:
            for each in same:
                self._drop(each)
            return
        row["max_rouge"], row["nearest_id"] = self.pool.nearest(found := words(text))
        if not found:
            draft.reason = "has no word in a-z and 0-9"
        elif row["max_rouge"] > self.novelty:
            draft.reason = f"is more like another text than ROUGE-L {self.novelty:g}"
        else:
            self.good[answer] += 1
            if self.kept[answer] >= self.wanted[answer]:
                draft.reason = "there are enough for its answer"
            else:
                self.kept[answer] += 1
                self.pool.add(row["id"], found)

    def outcomes(self) -> Iterator[Made]:
        """Every draft with its outcome."""
        for draft in self.drafts:
            yield Made(draft.row, "filtered", draft.reason) if draft.reason else Made(draft.row)

    def _drop(self, draft: Draft) -> None:
        """Its text stays in the pool, so that what was decided since still holds."""
        if not draft.reason:
            if draft is not self.drafts[-1]:
                self.kept[draft.answer] -= 1
                self.good[draft.answer] -= 1
            draft.reason = CONFLICT

    def _row(self, text: str, answer: str, shown: Sequence[Seed], gen: Mapping[str, Any]) -> dict[str, Any]:
        parents = [seed.id for seed in shown]
        turns = [("system", shown[0].system), ("user", text), ("assistant", answer)]
        messages = [{"role": role, "content": content} for role, content in turns if content is not None]
        first = row_id(parents, messages)
        count = self._ids[first]
        self._ids[first] += 1
        return {
            "id": row_id(parents, messages, count),
            "parents": parents,
            "group": join_groups(seed.group for seed in shown),
            "source": "generated",
            "messages": messages,
            "answer": answer,
            "gen": {"stage": "generate.self_instruct", "model": self.model, **gen},
            "max_rouge": None,
            "nearest_id": None,
        }


def _key(text: str) -> str:
    return " ".join(text.casefold().split())
