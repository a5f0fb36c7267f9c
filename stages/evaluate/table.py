"""What a report is made of: rows as examples, and tables over predictions. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftline.stages.evaluate.metric import Example, Prediction

if TYPE_CHECKING:
    import pyarrow as pa


def examples_of(table: pa.Table) -> list[Example]:
    """Rows with an answer as examples: each prompt is its messages up to the final assistant turn."""
    found = []
    for row in table.select(["id", "group", "messages", "answer"]).to_pylist():
        messages = row["messages"] or []
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if row["answer"] and row["answer"].strip() and messages:
            prompt = tuple({"role": turn["role"], "content": turn["content"]} for turn in messages)
            found.append(Example(row["id"], prompt, row["answer"], row["group"] or row["id"]))
    return found


def shown(prompt: Sequence[Mapping[str, str]]) -> str:
    """A prompt as people read it: the one user turn alone, else every turn with its role."""
    turns = [turn for turn in prompt if turn["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def faults(predictions: Sequence[Prediction]) -> dict[str, int]:
    """How many predictions stand for no label (`unparsed`), and how many of them for each cause there is."""
    counted = Counter(prediction.fault for prediction in predictions if prediction.fault)
    return {"unparsed": sum(counted.values()), **dict(sorted(counted.items()))}


def confusion(predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    """Reference → what was predicted → how often; what stands for no label goes by its cause, in brackets."""
    table: dict[str, Counter[str]] = {}
    for prediction, example in zip(predictions, examples, strict=True):
        table.setdefault(example.reference, Counter())[prediction.label or f"({prediction.fault})"] += 1
    return {reference: dict(sorted(count.items())) for reference, count in sorted(table.items())}


def finite(value: Any) -> Any:
    """JSON without NaN, which JSON has none of: null in its place."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat(
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]], also: Mapping[str, Sequence[str]] | None = None
) -> dict[str, float]:
    """A report's values as metrics: `exact_match/base`, `exact_match/<column>`, and the last column's `exact_match`.

    Args:
        also: figure → names of further numbers in its cells.
    """
    values: dict[str, float] = {}
    for figure, by_column in metrics.items():
        for column, cell in by_column.items():
            values[f"{figure}/{column}"] = values[figure] = cell["value"]
            for name in (also or {}).get(figure, ()):
                values[f"{name}/{column}"] = values[name] = cell[name]
    return values
