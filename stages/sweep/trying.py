"""Trials that are known before the first one: made side by side, as many as the cluster has room for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from graftline.stages.errors import BudgetSpent, RunError, Stopped
from graftline.stages.sweep.outcome import Outcome, curve_of, read

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact
    from graftline.stages.stage import Context, Stage
    from graftline.stages.sweep.sweep import Sweep, Trial

MOST_AT_ONCE = 64
"""Trials that are asked for at once; the run lets each in when there is room for it."""


def try_all(sweep: Sweep, trials: Sequence[Trial], context: Context) -> list[Outcome]:
    """What came of each trial, in their order. An error that is no trial's own ends the sweep: the trials that were
    running are finished and kept."""
    found: dict[int, Outcome] = {}
    with ThreadPoolExecutor(min(len(trials), sweep.at_once or MOST_AT_ONCE)) as pool:
        asked = {pool.submit(one, sweep, trial, context.run): place for place, trial in enumerate(trials)}
        try:
            for done in as_completed(asked):
                found[asked[done]] = done.result()
                context.progress(len(found), len(trials), **best_so_far(sweep, found.values()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[place] for place in range(len(trials))]


def one(sweep: Sweep, trial: Trial, run: Callable[[Stage], Artefact]) -> Outcome:
    """Has one trial made by `run` (or found in the store) and reads its metric."""
    try:
        measured = run(trial.measured)
        artefact = measured if trial.measured == trial.stage else run(trial.stage)
    except (BudgetSpent, Stopped):
        raise
    except RunError as error:  # its loss was not finite, it kept no row: it loses, the others go on
        return Outcome(trial.values, "failed", why=str(error))
    value = read(measured.metrics, sweep.metric_name, f"{sweep.name}.metric")
    return Outcome(trial.values, "full", value, artefact, curve=curve_of(artefact, sweep.metric_name))


def best_so_far(sweep: Sweep, outcomes: Collection[Outcome]) -> dict[str, float]:
    """The best value, as progress shows it."""
    values = [each.value for each in outcomes if each.value is not None and each.status == "full"]
    return {sweep.metric_name: min(values) if sweep.mode == "min" else max(values)} if values else {}
