"""What came of the trials: which is best, and the table of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftline.stages.errors import InvalidField, RunError
from graftline.stages.specification import short

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact

TABLE = "trials.parquet"
LOG = "log.jsonl"
Status = Literal["full", "stopped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What came of one trial.

    Args:
        values: name of the swept field → its value.
        status: `full` = it ran to its end; only such a one can win.
        value: the metric, where it is a finite number (of a stopped trial: the last it had).
        artefact: of a full trial.
        why: why it failed, or when it was stopped.
        curve: (optimizer step, metric) on the way, where the trial measured it then.
    """

    values: Mapping[str, Any]
    status: Status
    value: float | None = None
    artefact: Artefact | None = None
    why: str = ""
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps of a full trial."""
        return int(self.artefact.metrics.get("steps") or 1) if self.artefact is not None else 0

    @property
    def fingerprint(self) -> str:
        return self.artefact.fingerprint if self.artefact is not None else ""

    def to_dict(self) -> dict[str, Any]:
        """A line of the table that the sweep's metrics have."""
        return {
            "values": {name: _told(value) for name, value in self.values.items()},
            "status": self.status,
            "metric": self.value,
            "seconds": self.artefact.manifest["seconds"] if self.artefact is not None else None,
            "fingerprint": self.fingerprint,
            "why": self.why,
        }


def read(metrics: Mapping[str, Any], name: str, where: str) -> float | None:
    """A metric as a finite number, or None where it is none.

    Raises:
        InvalidField: there is no metric of that name.
    """
    if name not in metrics:
        had = ", ".join(name for name, value in metrics.items() if isinstance(value, (int, float)))
        raise InvalidField(f"the trials have no {name!r}", where=where, do=f"pick by one of {had}")
    value = metrics[name]
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None


def curve_of(artefact: Artefact, metric: str) -> tuple[tuple[int, float], ...]:
    """(optimizer step, value) of a metric that a trial logged on its way; what was not finite is NaN."""
    lines = [line for line in artefact.lines(LOG) if metric in line]
    return tuple((line["step"], math.nan if line[metric] is None else line[metric]) for line in lines)


def pick(outcomes: Sequence[Outcome], metric: str, mode: Literal["min", "max"], where: str) -> Outcome:
    """The best full-length trial; ties go to the smaller fingerprint.

    Raises:
        RunError: none has the metric as a finite number.
    """
    sign = 1.0 if mode == "min" else -1.0
    found = [
        (sign * each.value, each.fingerprint, place)
        for place, each in enumerate(outcomes)
        if each.status == "full" and each.value is not None
    ]
    if not found:
        why = next((each.why for each in outcomes if each.why), "it is no finite number")
        raise RunError(
            f"none of {len(outcomes)} trials has a {metric}: {why}",
            where=where,
            do="look at the trials; a smaller learning rate often helps",
        )
    return outcomes[min(found)[2]]


def keep(outcomes: Sequence[Outcome], best: Outcome, metric: str, out: Path) -> dict[str, Any]:
    """Copy the best trial's files to `out`, write the table beside them; answers with the metrics."""
    artefact = best.artefact
    assert artefact is not None
    artefact.copy(out)
    write_table(outcomes, out / TABLE)
    ended = [each for each in outcomes if each.status == "full"]
    return {
        metric: best.value,
        **artefact.metrics,
        "trials": [each.to_dict() for each in outcomes],
        "picked_by": metric,
        "best": {name: _told(value) for name, value in best.values.items()},
        "trials_full": len(ended),
        "trials_stopped": sum(each.status == "stopped" for each in outcomes),
        "trials_failed": sum(each.status == "failed" for each in outcomes),
        "_digest": artefact.digest,
        "_reproducible": artefact.manifest["reproducible"],
        "_why": artefact.manifest["why"],
    }


def write_table(outcomes: Sequence[Outcome], path: Path) -> None:
    """One line a trial, a column for each swept field; the last two have the metric's values on the way."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {}
    for name in outcomes[0].values:
        told = [_told(each.values[name]) for each in outcomes]
        kinds = {type(value) for value in told} - {type(None)}
        columns[name] = pa.array(told if len(kinds) <= 1 else [None if each is None else str(each) for each in told])
    lines = [each.to_dict() for each in outcomes]
    types = {"status": pa.string(), "metric": pa.float64(), "seconds": pa.float64(), "fingerprint": pa.string()}
    columns |= {name: pa.array([line[name] for line in lines], type_) for name, type_ in types.items()}
    columns["why"] = pa.array([line["why"] for line in lines], pa.string())
    columns["curve_steps"] = pa.array([[step for step, _ in each.curve] for each in outcomes], pa.list_(pa.int64()))
    columns["curve"] = pa.array([[value for _, value in each.curve] for each in outcomes], pa.list_(pa.float64()))
    pq.write_table(pa.table(columns), path, compression="zstd")


def _told(value: Any) -> Any:
    """A value as tables show it."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else short(value)
