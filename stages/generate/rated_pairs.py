"""Preference pairs from rated answers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from graftline.stages.expected import Expected, Given, Row, answer_of
from graftline.stages.generate.children import GENERATED, prompt_of
from graftline.stages.rows import PREFERENCE, Columns, canonical, join_groups, row_id
from graftline.stages.shapes import Made, Source
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Rows

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact


class RatedPairs(Source):
    """Makes a preference pair of every two answers to one prompt that are rated differently (Instruction Tuning with
    GPT-4's comparison data).

    Answers with equal ratings make no pair, answers without a rating are in none. A pair's parents are its two rows;
    all pairs of a prompt have one group, which joins those of its rows, so that a split never cuts them apart.

    Args:
        candidates: answered rows, several to a prompt: of `TeacherResponses` with `n`, or of several teachers.
        by: the column with the ratings, such as a judge's; larger is better.

    Adds `margin`: the better rating minus the worse.

    The property its tests check: K rated answers with t ties give exactly K(K-1)/2 - t pairs, whatever their order.
    """

    method = "generate.teacher_responses.pairs"
    papers = (Paper("Instruction Tuning with GPT-4"),)
    adds = {"margin": "float64"}

    candidates: Rows
    by: str

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"candidates": {"messages": "messages", "group": "string", self.by: "number"}}

    def columns_made(self) -> Columns:
        return {**PREFERENCE, **self.adds}

    def expected(self, given: Given) -> Expected:
        """Every two answers to a prompt make a pair, unless they are rated the same. Where a sample of many rows has no
        two answers to one, nothing is known."""
        rows = given.rows(self.candidates)
        prompts = rows.groups(lambda row: canonical(prompt_of(row.get("messages")))) or 0
        answers = (rows.count or 0) / prompts if prompts else 0.0
        pairs = round(prompts * answers * (answers - 1) / 2) if answers > 1 else None
        return Expected(rows.like(pairs, "<=", _paired))

    def make_rows(self, context: Context, **inputs: Artefact) -> Iterator[Made]:
        prompts: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        columns = list(dict.fromkeys(["id", "group", "messages", "gen", self.by]))
        for row in inputs["candidates"].rows(columns).to_pylist():
            if (row["messages"] or [{"role": ""}])[-1]["role"] == "assistant":
                prompts[canonical(prompt_of(row["messages"]))].append(row)
        for same in prompts.values():
            group = join_groups(row["group"] or row["id"] for row in same)
            rated = [row for row in same if row[self.by] is not None and math.isfinite(row[self.by])]
            for first, second in combinations(rated, 2):
                if first[self.by] != second[self.by]:
                    better, worse = sorted((first, second), key=lambda row: -row[self.by])
                    yield self._pair(better, worse, group)

    def _pair(self, better: Mapping[str, Any], worse: Mapping[str, Any], group: str) -> Made:
        chosen, rejected = (row["messages"][-1]["content"] for row in (better, worse))
        prompt, parents = [dict(turn) for turn in prompt_of(better["messages"])], [better["id"], worse["id"]]
        row = {
            "id": row_id(parents, [prompt, chosen, rejected]),
            "parents": parents,
            "group": group,
            "source": GENERATED,
            "gen": better["gen"],
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "margin": float(better[self.by] - worse[self.by]),
        }
        return Made(row, "filtered", "chosen and rejected are the same") if chosen == rejected else Made(row)


def _paired(row: Row) -> Row:
    """A pair as `plan` sees it: two answers of the same length."""
    return {"prompt": prompt_of(row.get("messages")), "chosen": answer_of(row), "rejected": answer_of(row)}
