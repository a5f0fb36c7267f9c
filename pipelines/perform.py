"""What a worker does with a work order: every shape of stage but the chains of mappers and scorers (`chains.py`)."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftline.pipelines.account import Account
from graftline.pipelines.artefacts import entries
from graftline.pipelines.context import WorkerContext, context_of, set_threads
from graftline.pipelines.failures import ContractBroken, Failure
from graftline.pipelines.made import MadeRows
from graftline.pipelines.parts import REASON, Parts, mask
from graftline.pipelines.work import LOG, Product, Work, commit, input_rows, made_product, rows_product
from graftline.stages.artefact import Artefact
from graftline.stages.errors import StoreFailed
from graftline.stages.shapes import Rounds, Selector, Source, Verdict


def perform(work: Work) -> tuple[Artefact | None, Failure | None]:
    """Makes and commits a stage; an error comes back as a value, since not every process knows its class."""
    set_threads(work.resources.threads or 1)
    attempt = work.identity.new_attempt()
    try:
        with context_of(work) as context:
            return commit(work, attempt, made(work, attempt, context)), None
    except Exception as error:
        discard(work, attempt)
        return None, Failure.of(error, work.stage.name)


def made(work: Work, attempt: str, context: WorkerContext) -> Product:
    """What the stage makes, by its shape."""
    stage, began = work.stage, time.time()
    if isinstance(stage, Selector):
        product = selected(work, attempt, context, began)
    elif isinstance(stage, Source):
        parts = Parts(work.store, attempt)
        rows = MadeRows(stage, parts, input_rows(work))
        rows.take(stage.make_rows(context, **work.arguments(stage)), lambda count: context.progress(count, 0))
        product = rows_product(work, parts, rows.account, began)
    elif isinstance(stage, Rounds):
        from graftline.pipelines.rounds import asked_in_rounds

        product = asked_in_rounds(work, attempt, context, began)
    else:
        product = by_make(work, attempt, context, began)
    if not product.calls:
        product.calls = context.calls.to_dict()
    if context.calls.requests and not context.calls.reproducible:
        product.reproducible, product.why = False, product.why or context.calls.why
    return product


def selected(work: Work, attempt: str, context: WorkerContext, began: float) -> Product:
    """A selector's product: its verdicts joined with its rows."""
    stage = work.stage
    assert isinstance(stage, Selector)
    table = work.opened(stage.rows).rows()
    verdicts = checked(stage, list(stage.select_rows(table, context)), table["id"].to_pylist())
    parts, account = Parts(work.store, attempt), Account(given=table.num_rows, carried=table.num_rows)
    outcomes = [verdicts[row] for row in table["id"].to_pylist()]
    for part in stage.views or ("",):
        kept = mask(each.outcome == "kept" and each.part == part for each in outcomes)
        account.kept += kept.true_count
        parts.write(f"rows/{part}".rstrip("/"), table.filter(kept).select(list(stage.columns)))
    dropped = mask(each.outcome == "filtered" for each in outcomes)
    if dropped.true_count:
        import pyarrow as pa

        reasons = [each.reason or "filtered" for each in outcomes if each.outcome == "filtered"]
        account.filtered.update(reasons)
        rows = table.filter(dropped).select(list(stage.columns))
        (name,) = REASON
        parts.write("filtered", rows.append_column(name, pa.array(reasons, pa.string())))
    return rows_product(work, parts, account, began)


def checked(stage: Selector, verdicts: list[Verdict], ids: list[str]) -> Mapping[str, Verdict]:
    """Id → verdict. Raises `ContractBroken` unless there is exactly one for each row."""
    found: dict[str, Verdict] = {}
    known = set(ids)
    for verdict in verdicts:
        if not isinstance(verdict, Verdict) or verdict.outcome not in ("kept", "filtered"):
            problem = f"gave the verdict {verdict!r}"
        elif verdict.id not in known:
            problem = f"gave a verdict on {verdict.id!r}, which is not among its rows"
        elif verdict.id in found:
            problem = f"gave two verdicts on {verdict.id!r}"
        elif verdict.outcome == "kept" and verdict.part not in (stage.views or ("",)):
            problem = f"put {verdict.id!r} into the part {verdict.part!r}, which it does not have"
        else:
            found[verdict.id] = verdict
            continue
        raise ContractBroken(problem, where=stage.name, do="give each row one Verdict(id, outcome, reason, part)")
    if len(found) < len(known):
        missing = min(known - set(found))
        raise ContractBroken(
            f"gave no verdict on {len(known) - len(found)} rows, such as {missing!r}",
            where=stage.name,
            do="give each row one Verdict",
        )
    return found


def by_make(work: Work, attempt: str, context: WorkerContext, began: float) -> Product:
    """The product of a stage with a `make`, which writes into the attempt's folder, or into a local one that is then
    put into a remote store."""
    local = work.store.local
    out = work.store.local_path(attempt) if local else Path(tempfile.mkdtemp(prefix="graftline-out-"))
    out.mkdir(parents=True, exist_ok=True)
    try:
        metrics: Any = work.stage.make(context, out, **work.arguments(work.stage))
        if not isinstance(metrics, Mapping):
            raise ContractBroken(
                f"make() returned {type(metrics).__name__}", where=work.stage.name, do="return a mapping of metrics"
            )
        if lines := context.logged():
            (out / LOG).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        files = entries(out)
        if not local:
            for name in files:
                work.store.upload(out / name, f"{attempt}/{name}")
    finally:
        if not local:
            shutil.rmtree(out, ignore_errors=True)
    if work.stage.kind == "rows":
        return _read_back(work, attempt, files, dict(metrics), began)
    return made_product(work, files, dict(metrics), began)


def _read_back(work: Work, attempt: str, files: dict[str, Any], metrics: dict[str, Any], began: float) -> Product:
    """Rows that a `make` wrote itself, below `rows/`: all of them new."""
    from graftline.stages.rows import rows_digest

    parts = Parts(work.store, attempt, files)
    table = parts.read("rows", work.stage.columns)
    product = made_product(work, files, metrics, began)
    product.account = Account(created=table.num_rows, kept=table.num_rows)
    product.digest = rows_digest(table)
    return product


def discard(work: Work, attempt: str) -> None:
    """Removes an attempt that failed; what cannot be removed now, `gc` will."""
    try:
        work.store.delete(attempt)
    except StoreFailed:
        return
