"""Trials that are known before the first one: made side by side, as many as the cluster has room for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from graftline.stages.errors import BudgetSpent, RunError
from graftline.stages.sweep.outcome import Outcome, read

if TYPE_CHECKING:
    from graftline.stages.stage import Context
    from graftline.stages.sweep.sweep import Sweep, Trial

MOST_AT_ONCE = 64
"""Trials that are asked for at once; the run lets each in when there is room for it."""


def try_all(sweep: Sweep, trials: Sequence[Trial], context: Context) -> list[Outcome]:
    """What came of each trial, in their order. An error that is no trial's own ends the sweep: the trials that were
    running are finished and kept."""
    found: dict[int, Outcome] = {}
    with ThreadPoolExecutor(min(len(trials), sweep.at_once or MOST_AT_ONCE)) as pool:
        asked = {pool.submit(one, sweep, trial, context): place for place, trial in enumerate(trials)}
        try:
            for done in as_completed(asked):
                found[asked[done]] = done.result()
                context.progress(len(found), len(trials), **best_so_far(sweep, found.values()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[place] for place in range(len(trials))]


def one(sweep: Sweep, trial: Trial, context: Context) -> Outcome:
    """Has one trial made (or found in the store) and reads its metric."""
    try:
        measured = context.run(trial.measured)
        artefact = measured if trial.measured == trial.stage else context.run(trial.stage)
    except BudgetSpent:
        raise
    except RunError as error:  # its loss was not finite, it kept no row: it loses, the others go on
        return Outcome(trial.values, "failed", why=str(error))
    return Outcome(trial.values, "full", read(measured.metrics, sweep.metric_name, f"{sweep.name}.metric"), artefact)


def best_so_far(sweep: Sweep, outcomes: object) -> dict[str, float]:
    """The best value, as progress shows it."""
    values = [each.value for each in outcomes if each.value is not None]  # type: ignore[attr-defined]
    return {sweep.metric_name: min(values) if sweep.mode == "min" else max(values)} if values else {}
