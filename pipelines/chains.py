"""Chains of mappers and scorers: one Ray Data job over fixed ranges of ids, each range run through all of them.

A range (shard) is read from the input artefact, goes through the chain batch by batch, and its rows are written from
inside the same task, dropped ones too, to files named by the digest of the range's ids (a task that is run twice
overwrites them). Only summaries come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from graftline.pipelines.account import Account
from graftline.pipelines.context import WorkerContext, set_threads
from graftline.pipelines.failures import Failure
from graftline.pipelines.ledger import RowLedger, overlapping
from graftline.pipelines.parts import REASON, Parts, ids_digest, lenient
from graftline.pipelines.perform import discard
from graftline.pipelines.steps import Step
from graftline.pipelines.work import Work, commit, rows_product
from graftline.stages.artefact import Artefact
from graftline.stages.errors import StoreFailed, TooManyFailed
from graftline.stages.stage import Stage

if TYPE_CHECKING:
    import pyarrow as pa

MOST_SHARDS = 512
"""Of a very large input: its ranges grow beyond a batch instead of becoming more."""


@dataclass(frozen=True)
class Shard:
    """A range of input rows.

    Args:
        first, last: its first and last id.
        rows: how many there are.
        known: the ledger's files that may know some of them.
    """

    first: str
    last: str
    rows: int
    known: tuple[str, ...] = ()


@dataclass
class Summary:
    """What came of a shard: an account for each stage of the chain, the files written; or an error."""

    rows: int
    accounts: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Summary:
        return cls(**{**value, "failure": Failure(**value["failure"]) if value["failure"] else None})


def cut(ids: Sequence[str], batch: int, ledger: Sequence[str] = ()) -> list[Shard]:
    """The ranges of sorted ids. They depend on the ids and the batch size alone, so every run has the same."""
    size = batch * max(1, len(ids) // (batch * MOST_SHARDS))
    shards = []
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        shards.append(Shard(part[0], part[-1], len(part), tuple(overlapping(ledger, part[0], part[-1]))))
    return shards


class Chain:
    """The stages of a chain in one process, with their engines; called with one shard after the other."""

    def __init__(self, work: Work, attempt: str) -> None:
        self.work, self.attempt = work, attempt
        self.steps = []
        for stage in work.chain:
            ledger = RowLedger(work.store, work.ledger) if work.ledger and stage is work.chain[-1] else None
            self.steps.append(Step(stage, WorkerContext(work, stage, keep_engines=True), ledger))  # type: ignore[arg-type]

    def __call__(self, shard: Shard) -> Summary:
        set_threads(self.work.resources.threads or 1)
        try:
            return self._run(shard)
        except Exception as error:
            return Summary(shard.rows, failure=Failure.of(error, self.work.stage.name))

    def _run(self, shard: Shard) -> Summary:
        table = self._read(self.work.opened(self.work.chain[0].__dict__["rows"]), shard)
        parts, name = Parts(self.work.store, self.attempt), ids_digest(table["id"].to_pylist())
        summary = Summary(shard.rows, files=parts.files)
        for index, step in enumerate(self.steps):
            kept, dropped = step.run(table, shard.known if step.ledger is not None else ())
            account = Account(
                table.num_rows, table.num_rows, 0, kept.num_rows, dropped.reasons["filtered"], dropped.reasons["failed"]
            )
            summary.accounts.append(account.to_dict(whole=True))
            folder = "" if step is self.steps[-1] else f"{chain_folder(index, step.stage)}/"
            for outcome, rows in dropped.rows.items():
                if rows:
                    parts.write(f"{folder}{outcome}", lenient(rows, {**step.stage.columns, **REASON}), name)
            table = kept
        if table.num_rows:
            parts.write("rows", table, name)
        return summary

    def _read(self, artefact: Artefact, shard: Shard) -> pa.Table:
        import pyarrow.compute as pc

        wanted = (pc.field("id") >= shard.first) & (pc.field("id") <= shard.last)
        table = artefact.dataset().to_table(filter=wanted).sort_by("id")
        if table.num_rows != shard.rows:
            raise StoreFailed(
                f"has {table.num_rows} rows where {shard.rows} are listed",
                where=artefact.path,
                do="run `graftline retry`",
            )
        return table

    def close(self) -> None:
        for step in self.steps:
            step.context.close()


def chain_folder(index: int, stage: Stage) -> str:
    """Where the dropped rows of an earlier stage of a chain lie."""
    return f"chain/{index}-{type(stage).__name__}"


def run_chain(
    work: Work,
    run: Callable[[Work, str, list[Shard]], Iterable[Summary]],
    finish: Callable[[Work, str, Summary], tuple[Artefact | None, Failure | None]],
) -> tuple[Artefact | None, Failure | None]:
    """Runs and commits a chain.

    Args:
        work: the work order.
        run: runs shards of an attempt, wherever, in whatever order.
        finish: calls `close_chain`, wherever.
    """
    attempt, total = work.identity.new_attempt(), Summary(0)
    try:
        ids = work.opened(work.chain[0].__dict__["rows"]).rows(["id"])["id"].to_pylist()
        known = RowLedger(work.store, work.ledger).files() if work.ledger else []
        accounts = [Account() for _ in work.chain]
        began, size = time.time(), max(stage.__dict__["batch_size"] for stage in work.chain)
        for summary in run(work, attempt, cut(ids, size, known)):
            if summary.failure is not None:
                discard(work, attempt)
                return None, summary.failure
            total.rows += summary.rows
            total.files |= summary.files
            for account, stage, more in zip(accounts, work.chain, summary.accounts, strict=True):
                account.add(Account.from_dict(more))
                _stop_early(account, stage, len(ids))
            rate = total.rows / max(1e-6, time.time() - began)
            told = {"kind": "progress", "key": work.stage.key, "done": total.rows, "total": len(ids)}
            work.board.tell({**told, "numbers": {"rows_per_second": round(rate, 1)}})
        total.accounts = [account.to_dict(whole=True) for account in accounts]
    except Exception as error:
        discard(work, attempt)
        return None, Failure.of(error, work.stage.name)
    return finish(work, attempt, total)


def close_chain(work: Work, attempt: str, total: Summary, began: float) -> tuple[Artefact | None, Failure | None]:
    """Commits a chain whose shards are done."""
    try:
        *earlier, account = map(Account.from_dict, total.accounts)
        chain = []
        for stage, each in zip(work.chain, earlier, strict=False):
            each.check(stage.name, getattr(stage, "max_failed", 1.0))
            chain.append(
                {
                    "stage": stage.name,
                    "class": stage.qualified,
                    "fingerprint": work.fingerprints[stage.key],
                    "rows": each.to_dict(),
                }
            )
        account.check(work.stage.name, getattr(work.stage, "max_failed", 1.0))
        product = rows_product(work, Parts(work.store, attempt, dict(total.files)), account, began)
        product.chain = chain
        if work.ledger:
            product.calls = RowLedger(work.store, work.ledger).calls()
            product.why = product.calls.pop("why", "")
            product.reproducible = not product.why
        return commit(work, attempt, product), None
    except Exception as error:
        discard(work, attempt)
        return None, Failure.of(error, work.stage.name)


def _stop_early(account: Account, stage: Stage, most: int) -> None:
    """Stops once no more good rows can bring the failed share below the limit."""
    failed, limit = account.failed.total(), getattr(stage, "max_failed", 1.0)
    if failed > limit * most:
        ((why, count), *_) = account.failed.most_common(1)
        raise TooManyFailed(
            f"{failed} of its first {account.carried} rows failed, more than max_failed={limit:g} of {most} allows;"
            f" most often ({count}): {why[:200]}",
            where=stage.name,
            do="look at its input, or raise max_failed",
        )
