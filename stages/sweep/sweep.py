"""A sweep as a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from graftline.stages.errors import InvalidField, WrongKind
from graftline.stages.evaluate.figure import Figure
from graftline.stages.expected import Expected, Given
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.reference import base_of
from graftline.stages.read.jsonl import Jsonl
from graftline.stages.specification import Execution, Template, short
from graftline.stages.stage import Context, Kind, Resources, Stage
from graftline.stages.sweep.domain import Domain
from graftline.stages.sweep.listed import Listed
from graftline.stages.sweep.points import Point, combinations, grid_points, random_points
from graftline.stages.sweep.scheduler import Scheduler
from graftline.stages.sweep.swept import Swept, judged_by, swept_fields, test_parts
from graftline.stages.train.train import Train
from graftline.stages.value_graph import frontier, varied, walk

MOST_FORESEEN = 100
"""Trials that `plan` looks at one by one."""


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        values: name of the swept field → its value.
        stage: what is trained.
        measured: what the metric is read from: the stage, or the report on it.
    """

    values: Mapping[str, Any]
    stage: Stage
    measured: Stage


class Sweep(Stage):
    """Varies fields of any stage under one that trains, has each variation made, and keeps the best.

    What no variation changes is made once, before the first trial; a trial is an ordinary artefact in the store, which
    other sweeps share and a sweep that was interrupted finds again. The metric is a number of the trials themselves
    (`eval_loss`, on `held_out`) or of a report on them. A trial that fails, is stopped early or measures NaN never
    wins; ties go to the smaller fingerprint. Random search and grid are Graftline's own; `search="optuna"` (a
    tree-structured Parzen estimator) and schedulers run in Ray Tune.

    Args:
        stage: what to vary; it makes an adapter, a model or a report, and so does the sweep.
        over: field → values. A field is a path from `stage` (`"adapter.rank"`), or a stage under it and a path from
            there (`(chosen, "budget")`); values are `sweep.grid(4, 8)`, `sweep.choice("a", "b")`,
            `sweep.uniform(0.0, 1.0)`, `sweep.log_uniform(1e-5, 1e-3)` or `sweep.integers(1, 5)`.
        metric: what to pick by: a metric of the stage, or `report.metric("exact_match")` of a report on it.
        mode: whether the smallest or the largest wins.
        search: `grid` tries every combination, `random` draws them, `optuna` learns from the trials before.
        scheduler: ends bad trials early (None: all run to the end).
        trials: how many, at most (None: all of a grid; the other searches need a number).
        seed: of what is drawn.
        at_once: trials at once (None: as many as fit the cluster; of Optuna's one, which learns from those before).

    Raises:
        InvalidField: no such field, no values, values it does not take, rows to measure on that a swept field changes.
        RunError: no trial has the metric as a finite number.

    Property tested: the frontier is made once; trials are shared through the store; ties go to the smaller fingerprint;
    NaN, failed and stopped trials never win.
    """

    method = "sweep.sweep"
    origin = "Graftline; searching and scheduling by Ray Tune and Optuna"
    specimen: ClassVar[dict[str, Any]] = {
        "stage": Train(model=Llm("tiny"), rows=Jsonl(path="train.jsonl"), held_out=Jsonl(path="dev.jsonl")),
        "over": {"optimizer.lr": Listed(values=(0.25, 0.5))},
        "trials": 2,
    }

    stage: Annotated[Stage, Template]
    over: Annotated[Mapping[str | tuple[Stage, str], Domain], Template]
    metric: Annotated[str | Figure, Template] = "eval_loss"
    mode: Literal["min", "max"] = "min"
    search: Literal["grid", "random", "optuna"] = "grid"
    scheduler: Scheduler | None = None
    trials: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0
    at_once: Annotated[int | None, Field(ge=1), Execution] = None

    _fields: tuple[Swept, ...] = PrivateAttr(())
    _frontier: dict[str, Stage] = PrivateAttr({})

    # --- the value --------------------------------------------------------------------------------------------

    def check(self) -> None:
        if self.stage.kind not in ("adapter", "model", "report"):
            raise WrongKind(
                f"{self.stage.name} makes {self.stage.kind}", where="Sweep.stage", do="sweep what is trained on them"
            )
        if isinstance(self.metric, Figure) and not any(node == self.stage for node in walk(self.metric.report)):
            raise InvalidField(
                f"{self.metric.report.name} is no report on {self.stage.name}",
                where="Sweep.metric",
                do="take a metric of a report that reads the swept stage",
            )
        if self.metric == "eval_loss" and self.stage.__dict__.get("held_out", "no such field") is None:
            raise InvalidField(
                f"{self.stage.name} has no eval_loss: it has no held-out rows",
                where="Sweep.metric",
                do="give it held_out=, or pick by a report's metric",
            )
        self._fields = tuple(swept_fields(self.stage, self.over))
        self._check_search()
        self._check_variants()

    def _check_search(self) -> None:
        for each in self._fields:
            if not each.domain.ends():
                raise InvalidField("has no values", where=f"Sweep.over: {each.name}", do="use sweep.grid(...)")
        domains, count = [each.domain for each in self._fields], combinations([each.domain for each in self._fields])
        if self.search == "grid":
            for each in self._fields:
                if each.domain.listed() is None:
                    raise InvalidField(
                        f"a grid cannot list {short(each.domain)}",
                        where=f"Sweep.over: {each.name}",
                        do='use sweep.grid(...), or search="random" with trials=',
                    )
            if self.trials is not None and count is not None and self.trials < count:
                raise InvalidField(
                    f"the grid has {count} combinations of {len(domains)} fields, {self.trials} trials are allowed",
                    where="Sweep.trials",
                    do='allow more, or use search="random"',
                )
        elif self.trials is None:
            raise InvalidField(f"{self.search} search has no end", where="Sweep.trials", do="say how many trials")
        if self.scheduler is not None:
            self.scheduler.check_trials(self.stage, self.metric)
            if self.scheduler.together and self.search == "optuna":
                raise InvalidField(
                    f"{type(self.scheduler).__name__} ranks trials that are known before the first one ends",
                    where="Sweep.scheduler",
                    do='use search="grid" or "random", or another scheduler',
                )

    def _check_variants(self) -> None:
        """Builds the stage with every listed value and each range's ends, so that a wrong one is refused now."""
        ends = [each.domain.ends() for each in self._fields]
        first = self.trial(tuple(each[0] for each in ends))
        variants, judges, base = [first.measured], judged_by(first.measured), self._base(first)
        for place, field in enumerate(self._fields):
            for value in ends[place][1:]:
                point = tuple(value if other == place else each[0] for other, each in enumerate(ends))
                variant = self.trial(point)
                if set(judged_by(variant.measured)) != set(judges):
                    names = ", ".join(sorted({each.name for each in judges.values()}))
                    raise InvalidField(
                        f"changes the rows that trials are compared on ({names})",
                        where=f"Sweep.over: {field.name}",
                        do="vary something that training alone sees, or compare by a report on other rows",
                    )
                if self._base(variant) != base:
                    raise InvalidField(
                        "would make adapters of several models",
                        where=f"Sweep.over: {field.name}",
                        do="sweep each model by itself",
                    )
                variants.append(variant.measured)
        for part in test_parts(judges.values()):
            raise InvalidField(
                f"would pick by {part.name}, which is for reports",
                where="Sweep.metric",
                do="pick by the part `dev`, and report on `test` afterwards",
            )
        self._frontier = frontier(variants)

    def _base(self, trial: Trial) -> Stage | None:
        return base_of(trial.stage) if self.kind == "adapter" and not trial.stage.is_open else None

    @property
    def kind(self) -> Kind:
        return self.stage.kind

    def trial(self, point: Point) -> Trial:
        """The trial at a point."""
        values = {field.name: value for field, value in zip(self._fields, point, strict=True)}
        label = f"{self.stage.name} {', '.join(f'{name}={_shown(value)}' for name, value in values.items())}"
        root = self.metric.report if isinstance(self.metric, Figure) else self.stage
        changes: dict[Any, Any] = {(field.owner, ".".join(field.path)): values[field.name] for field in self._fields}
        now = varied(root, {**changes, (self.stage, "label"): label})
        return Trial(values, now[self.stage.key], now[root.key])

    def points(self) -> list[Point]:
        """Where the trials are, where that is known before the first one; Optuna's are not."""
        domains = [field.domain for field in self._fields]
        if self.search == "grid":
            return grid_points(domains)
        return random_points(domains, self.trials or 1, self.seed) if self.search == "random" else []

    # --- making it --------------------------------------------------------------------------------------------

    def footprint(self) -> tuple[Resources, ...]:
        """It waits for its trials, which the cluster gives room to like any other stage."""
        return (self.resources or Resources(cpus=0.0),)

    def expand(self) -> Mapping[str, Stage]:
        """The frontier."""
        return {f"frontier_{place}": stage for place, stage in enumerate(self._frontier.values())}

    def foreseen(self) -> Mapping[str, Stage]:
        points = self.points()[:MOST_FORESEEN]
        if not points:  # of Optuna's trials, one: it must fit the cluster like all the others
            points = [tuple(field.domain.ends()[0] for field in self._fields)]
        return {f"trial {place}": self.trial(point).measured for place, point in enumerate(points)}

    def expected(self, given: Given) -> Expected:
        """All trials; a scheduler ends some of them early, and Optuna may draw a point twice."""
        known = len(self.points())
        looked_at = min(known, MOST_FORESEEN) or 1
        early = self.scheduler is not None or not known
        return Expected(times=(known or self.trials or 1) / looked_at, times_mark="<=" if early else "")

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        from graftline.stages.sweep.outcome import keep, pick
        from graftline.stages.sweep.trying import try_all

        if self.search == "optuna" or self.scheduler is not None:
            from graftline.stages.sweep.tuning import tune_all

            outcomes = tune_all(self, context)
        else:
            outcomes = try_all(self, [self.trial(point) for point in self.points()], context)
        best = pick(outcomes, self.metric_name, self.mode, where=self.name)
        metrics = keep(outcomes, best, self.metric_name, out)
        if why := self.not_reproducible():
            metrics |= {"_reproducible": False, "_why": why}
        return metrics

    def not_reproducible(self) -> str:
        """Why another run of it may pick another trial."""
        if self.scheduler is not None and not self.scheduler.together:
            return f"{type(self.scheduler).__name__} ends trials by which of them were faster"
        if self.search == "optuna" and self.at_once not in (None, 1):
            return "Optuna's choices depend on which trials ended first"
        return ""

    @property
    def fields(self) -> tuple[Swept, ...]:
        """The fields it varies."""
        return self._fields

    @property
    def metric_name(self) -> str:
        """The metric's name."""
        return self.metric if isinstance(self.metric, str) else self.metric.name


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else short(value)
