"""Rows made from other rows: their ids, parents and groups, and where they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from graftline.stages.rows import join_groups, row_id
from graftline.stages.stage import Stage

GENERATED = "generated"


class Children:
    """Makes rows, and numbers equal ones.

    Args:
        method: the id of the method that makes them.
        teacher: the model stage that wrote them.
    """

    def __init__(self, method: str, teacher: Stage) -> None:
        self.method, self.model = method, model_name(teacher)
        self._seen: Counter[str] = Counter()

    def row(
        self,
        parents: Sequence[Mapping[str, Any]],
        messages: Sequence[Mapping[str, str]],
        gen: Mapping[str, Any],
        **columns: Any,
    ) -> dict[str, Any]:
        """A row with the fixed columns and further ones.

        Args:
            parents: the rows it was made from; its group joins theirs.
            messages: a final assistant turn is also its `answer`.
            gen: round and seed.
        """
        ids = list(dict.fromkeys(parent["id"] for parent in parents))
        content = [dict(turn) for turn in messages]
        first = row_id(ids, content)
        count = self._seen[first]
        self._seen[first] += 1
        last = content[-1] if content else {"role": ""}
        return {
            "id": row_id(ids, content, count),
            "parents": ids,
            "group": join_groups(parent["group"] or parent["id"] for parent in parents),
            "source": GENERATED,
            "messages": content,
            "answer": last["content"] if last["role"] == "assistant" else None,
            "gen": {"stage": self.method, "model": self.model, **gen},
            **columns,
        }


def model_name(teacher: Stage) -> str:
    """The name of a model stage: of an `Llm` the last part of its model's, else the class's."""
    name = getattr(teacher, "model", None)
    return name.rpartition("/")[2] if isinstance(name, str) else type(teacher).__name__


def prompt_of(messages: Sequence[Mapping[str, Any]] | None) -> tuple[dict[str, str], ...]:
    """A row's conversation up to its final assistant turn."""
    found = [{"role": turn["role"] or "", "content": turn["content"] or ""} for turn in messages or ()]
    if found and found[-1]["role"] == "assistant":
        found.pop()
    return tuple(found)


def question_of(messages: Sequence[Mapping[str, Any]] | None) -> str:
    """A row's last user turn."""
    return next((turn["content"] or "" for turn in reversed(messages or ()) if turn["role"] == "user"), "")
