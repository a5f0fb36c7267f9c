"""Base and tuned models side by side on held-out rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftline.stages.errors import InvalidField, NothingKept, PromptTooLong, RowFault
from graftline.stages.evaluate import interval, pairs
from graftline.stages.evaluate.choice import Choice
from graftline.stages.evaluate.figure import Figure
from graftline.stages.evaluate.metric import Asked, Example, Metric, Prediction
from graftline.stages.evaluate.requirement import Requirement
from graftline.stages.evaluate.table import confusion, examples_of, faults, finite, flat, shown
from graftline.stages.expected import Expected, Given, Usage
from graftline.stages.lineage import refuse_leak, trained_on
from graftline.stages.lm.held import NONE, held_of
from graftline.stages.lm.reference import base_of, refuse_other_bases
from graftline.stages.rows import derived_seed
from graftline.stages.stage import Adapter, Context, Model, Rows, Stage

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.artefact import Artefact
    from graftline.stages.lm.engine import Engine

BASE = "base"
MOST_LABELS = 30
"""Labels up to which the report has a confusion table."""

Results = dict[str, dict[str, list[Prediction]]]
"""Figure → column → one prediction a row."""


class Compare(Stage):
    """Puts the base model, its adapters and other models side by side on the same held-out rows.

    "base" is the model without any adapter, as it was loaded. Base and adapters answer through one engine, so that
    nothing but the adapter differs; an adapter that belongs on a quantised base answers on one such, in an engine of
    its own, and the report says so (`held`). Intervals (95 %) count the rows of a group as one draw. Rows that a column
    was trained on, or that descend from them, are refused. The report has the values, the gains over the base, what
    each two columns got right that the other did not (with McNemar's exact test), which column was trained on more rows
    than which, samples, a confusion table and the digests; its metrics are `exact_match/base`, `exact_match/<name>` for
    each column, and `exact_match` (the last column's).

    Args:
        model: the base (a tuned model or adapter may be one).
        adapters: name → adapter of that base.
        models: name → another model, which gets an engine of its own.
        rows: the held-out rows; those without an answer are left out and counted.
        metrics: what is measured, at least one.
        seed: of the bootstrap and of the choice of samples.
        samples: rows shown with all answers.

    Raises:
        HeldOutLeak: a column was trained on these rows.
        NothingKept: no row has an answer.
    """

    method = "evaluate.compare"
    version = 2  # the report has pairs of columns
    origin = "a side-by-side table; no paper"
    makes = "report"
    whole_node = True
    needs = {"messages": "messages", "answer": "string"}
    specimen: ClassVar[Mapping[str, Any]] = {"metrics": (Choice(),)}

    model: Model
    adapters: Mapping[str, Adapter] = {}
    models: Mapping[str, Model] = {}
    rows: Rows
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]
    seed: int = 0
    samples: Annotated[int, Field(ge=0)] = 20

    def check(self) -> None:
        figures = self.figures
        if len(set(figures)) < len(figures) or not all(figures):
            raise InvalidField(f"has the figures {figures}", where="Compare.metrics", do="give each figure once")
        for field in ("adapters", "models"):
            for name in getattr(self, field):
                if not name or "/" in name or name == BASE or (field == "models" and name in self.adapters):
                    raise InvalidField(
                        f"{name!r} cannot name a column",
                        where=f"Compare.{field}.{name}",
                        do=f'use another name, without "/", not {BASE!r}, and each once',
                    )

        refuse_other_bases(self.model, self.adapters, where="Compare.adapters")

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of all its numbers."""
        return tuple(name for metric in self.metrics for name in (metric.figure, *metric.also))

    @property
    def columns_shown(self) -> tuple[str, ...]:
        """The report's columns: the base, then adapters and models by name."""
        return (BASE, *sorted(self.adapters), *sorted(self.models))

    def metric(self, name: str, of: str | None = None) -> Figure:
        """One of the report's numbers, for a sweep or a requirement.

        Args:
            name: the figure (`exact_match`), or with its column (`exact_match/base`).
            of: the column; None: the only tuned one.

        Raises:
            InvalidField: the report has no such number, or several tuned columns and `of` does not say which.
        """
        figure, _, column = name.partition("/")
        column = of or column
        figures, tuned = self.figures, self.columns_shown[1:]
        if not column:
            if len(tuned) > 1:
                raise InvalidField(
                    f"{name} of which column?", where="Compare.metric.of", do=f"use one of {', '.join(tuned)}"
                )
            column = tuned[0] if tuned else BASE
        if figure not in figures or column not in self.columns_shown:
            raise InvalidField(
                f"the report has no {figure} of {column}",
                where="Compare.metric",
                do=f"use one of {', '.join(figures)} of {', '.join(self.columns_shown)}",
            )
        return Figure(report=self, name=f"{figure}/{column}")

    def at_least(self, name: str, value: float, of: str | None = None) -> Requirement:
        """A requirement for `Service(requires=...)`: this number (see `metric`) is at least `value`."""
        return Requirement(figure=self.metric(name, of), least=value)

    def expected(self, given: Given) -> Expected:
        """Every metric asks every column about all rows."""
        rows, asked = given.rows(self.rows), Usage()
        for column in self.columns_shown:
            reader = given.reader(self.models.get(column, self.model))
            tuned = column != BASE or self.model.kind == "adapter"
            for metric in self.metrics:
                asked += metric.expected(rows, reader, tuned)
        return Expected(usage=asked)

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        table = inputs["rows"].rows(["id", "parents", "group", "messages", "answer"])
        trained = self._refuse_leaks(inputs, table)
        examples = examples_of(table)
        if not examples:
            raise NothingKept(
                "no row has an answer to compare with", where=self.name, do="give the reader an answer column"
            )
        decoding: dict[str, Any] = {}
        results: Results = {metric.figure: {} for metric in self.metrics}
        longest = longest_by(inputs["model"])
        labels = {metric.figure: metric.labels(examples) for metric in self.metrics}
        done, total = 0, len(examples) * len(self.metrics) * len(self.columns_shown)

        def tick(count: int) -> None:
            nonlocal done
            done += count
            context.progress(min(done, total), total)

        base_digest = ""
        held = {name: held_of(made.directory("adapter")) for name, made in inputs.get("adapters", {}).items()}
        held[BASE] = held_of(inputs["model"].directory("adapter")) if self.model.kind == "adapter" else NONE
        for column, engine, adapter in self._engines(context, held):
            base_digest = base_digest or engine.digest
            for metric in self.metrics:
                asked = Asked(engine, adapter, labels[metric.figure], longest, tick)
                predictions = predict(metric, asked, examples)
                results[metric.figure][column] = predictions
                value = metric.cell(predictions, examples, range(len(examples)), self.seed)["value"]
                context.progress(min(done, total), total, **{f"{metric.figure}/{column}": value})
                if column == BASE:
                    decoding |= metric.decoding(asked)
        report = {
            **self.report(examples, results),
            "trained_on": {column: rows.num_rows for column, rows in trained.items()},
            "beyond": pairs.beyond(trained),
            "rows_without_answer": table.num_rows - len(examples),
            "decoding": decoding,
            "seed": self.seed,
            "base_digest": base_digest,
            "held": {**dict.fromkeys(self.columns_shown, NONE), **held},
            "adapter_digests": {name: inputs["adapters"][name].digest for name in sorted(self.adapters)},
            "model_digests": {name: inputs["models"][name].digest for name in sorted(self.models)},
        }
        text = json.dumps(finite(report), indent=1, ensure_ascii=False)
        (out / "report.json").write_text(text, encoding="utf-8")
        return flat(report["metrics"], {metric.figure: metric.also for metric in self.metrics})

    def report(self, examples: Sequence[Example], results: Results) -> dict[str, Any]:
        """The report's tables, from what was answered: a pure function."""
        cluster = interval.clusters([example.group for example in examples])
        columns = list(self.columns_shown)
        judge = next((metric for metric in self.metrics if metric.judges), self.metrics[0])
        answers = results[judge.figure]
        chosen = sorted(range(len(examples)), key=lambda index: derived_seed(self.seed, examples[index].id))
        labels = judge.labels(examples) if judge.judges else ()
        return {
            "columns": columns,
            "metrics": {
                metric.figure: {
                    column: metric.cell(predictions, examples, cluster, self.seed) | faults(predictions)
                    for column, predictions in results[metric.figure].items()
                }
                for metric in self.metrics
            },
            "gains": {
                metric.figure: {
                    column: metric.gain(
                        results[metric.figure][BASE], results[metric.figure][column], examples, cluster, self.seed
                    )
                    for column in columns[1:]
                }
                for metric in self.metrics
            },
            "pairs": {
                metric.figure: pairs.compared(
                    {
                        column: [
                            metric.correct(*pair) for pair in zip(results[metric.figure][column], examples, strict=True)
                        ]
                        for column in columns
                    },
                    cluster,
                )
                for metric in self.metrics
                if metric.judges
            },
            "intervals": interval.described(cluster),
            "samples": [
                {
                    "id": examples[index].id,
                    "prompt": shown(examples[index].prompt),
                    "reference": examples[index].reference,
                    "answers": {column: answers[column][index].text for column in columns},
                    "correct": {column: judge.correct(answers[column][index], examples[index]) for column in columns}
                    if judge.judges
                    else {},
                }
                for index in chosen[: self.samples]
            ],
            "confusion": {column: confusion(answers[column], examples) for column in columns}
            if 0 < len(labels) <= MOST_LABELS
            else {},
        }

    def _engines(self, context: Context, held: Mapping[str, str]) -> Iterator[tuple[str, Engine, str | None]]:
        """Each column with its engine and the adapter's name on it.

        Args:
            held: how the base of each adapter, and of the base's own column, is held.
        """
        for how in sorted(set(held.values()), key=lambda how: (how != held[BASE], how)):
            alike = {name: self.adapters[name] for name in sorted(self.adapters) if held[name] == how}
            model = self.model if how == held[BASE] else base_of(self.model)
            with context.engine(model, alike) as engine:
                if how == held[BASE]:
                    yield BASE, engine, "adapter" if self.model.kind == "adapter" else None
                for name in alike:
                    yield name, engine, name
        for name in sorted(self.models):
            with context.engine(self.models[name]) as engine:
                yield name, engine, "adapter" if self.models[name].kind == "adapter" else None

    def _refuse_leaks(self, inputs: Mapping[str, Any], held_out: pa.Table) -> dict[str, pa.Table]:
        """What was trained keeps the ids of its rows in `trained_on.parquet`; a model from elsewhere has none. Answers
        with the rows of each column that has some."""
        columns = {
            BASE: (f"{self.name}.model", inputs["model"]),
            **{name: (f"{self.name}.adapters.{name}", made) for name, made in inputs.get("adapters", {}).items()},
            **{name: (f"{self.name}.models.{name}", made) for name, made in inputs.get("models", {}).items()},
        }
        found = {}
        for column in self.columns_shown:
            where, made = columns[column]
            trained = trained_on(made)
            if trained is not None:
                refuse_leak(trained, held_out, where=where)
                found[column] = trained
        return found


def predict(metric: Metric, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
    """A metric's predictions, where one row that cannot be asked (its prompt is too long, or holds the template's own
    marks) does not spoil the others: it has no label, and counts as wrong, by cause."""
    try:
        return metric.predict(asked, examples)
    except (PromptTooLong, RowFault) as error:
        if len(examples) == 1:
            asked.tick(1)
            return [Prediction("", fault="prompt_too_long" if isinstance(error, PromptTooLong) else "not_askable")]
        half = len(examples) // 2
        return predict(metric, asked, examples[:half]) + predict(metric, asked, examples[half:])


def longest_by(model: Artefact) -> Callable[[Sequence[str]], int]:
    """Counts the tokens of the longest text with the model's tokenizer; without one (an adapter given as the model, a
    server's model) its UTF-8 bytes stand for them, which no byte-level tokenizer exceeds."""
    if model.files("model/tokenizer.json"):
        from graftline.stages.lm.load import load_tokenizer

        tokenizer = load_tokenizer(model.directory("model"))
        return lambda texts: max(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    return lambda texts: max(len(text.encode()) for text in texts)
