"""The ledger of a stage that calls a model: every answer is kept as it comes, so that no row is paid for twice.

It lies in `ledger/<stage>-<specification, 16 hex>/` and is keyed by what was asked, whatever the inputs: rows by id and
the digest of the columns that are read, rounds by round and the digest of the prompt. A batch of rows is one file, and
so is an answer of a round (in a remote store a few answers); before them goes a small `.asked.json` file that says how
many requests are in flight, so that those lost in a kill are counted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from graftline.pipelines.parts import encoded
from graftline.pipelines.store import Store
from graftline.stages.rows import Columns, canonical, digest, schema
from graftline.stages.shapes import Mapper
from graftline.stages.specification import Pins, Specification, plain
from graftline.stages.stage import Stage

if TYPE_CHECKING:
    import pyarrow as pa

    from graftline.stages.lm.engine import Answer, Request

ASKED, ANSWERS, CLOSED = ".asked.json", ".answers.json", ".calls.json"
"""Endings of a batch's files: what is about to be asked, what was answered, what all of it cost."""
CONTENT = ("messages", "answer", "prompt", "chosen", "rejected")
"""Columns a stage may read without saying so."""


def specification(stage: Stage, fingerprints: Mapping[str, str], digests: Mapping[str, str], pins: Pins) -> str:
    """64 hex digits over a stage without its rows: the class, its semantic fields, and the models it asks (by
    fingerprint and digest).

    Args:
        fingerprints: of all specifications under it, by key.
        digests: of its inputs' artefacts, by key.
        pins: what stands for the outside world.
    """

    def reference(child: Specification) -> Any:
        if not isinstance(child, Stage):
            return described(child)
        return "rows" if child.kind == "rows" else {"$": fingerprints[child.key], "digest": digests.get(child.key)}

    def described(node: Specification) -> list[Any]:
        values = {name: plain(value, reference) for name, value in node.semantic(pins).items()}
        return [node.qualified, node.version, values]

    return digest(described(stage))


@dataclass(frozen=True)
class Ledger:
    """The files of one ledger.

    Args:
        store: the store.
        name: the ledger's folder in it.
    """

    store: Store
    name: str

    def ask(self, token: str, requests: int, model: str = "", why: str = "") -> None:
        """Says that so many requests are about to be sent, and why their answers may differ next time."""
        self.store.write_json(f"{self.name}/{token}{ASKED}", {"requests": requests, "model": model, "why": why})

    def calls(self) -> dict[str, Any]:
        """All requests that were paid, and their tokens. Of a batch that was cut off by a kill, all requests count
        (they were in flight) and the tokens of those that were answered. `why`: why answers may differ next time."""
        found: dict[str, Any] = {"model": "", "requests": 0, "tokens_in": 0, "tokens_out": 0}
        names = self.store.list(self.name, deep=True)
        closed = {name.removesuffix(CLOSED) for name in names if name.endswith(CLOSED)}
        for name in names:
            if name.endswith(CLOSED) or (name.endswith(ASKED) and name.removesuffix(ASKED) not in closed):
                _count(found, self.store.read_json(name) or {})
            elif name.endswith(ANSWERS) and name.removesuffix(ANSWERS).rpartition("-")[0] not in closed:
                for line in (self.store.read_json(name) or {"answers": []})["answers"]:
                    _count(found, {"tokens_in": line["tokens_in"], "tokens_out": line["tokens_out"]})
        return found if found["requests"] else {}


def _count(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        total[key] = total.get(key) or value if isinstance(value, str) else total.get(key, 0) + value


def new_token() -> str:
    return secrets.token_hex(6)


# --- rows -----------------------------------------------------------------------------------------------------


class RowLedger(Ledger):
    """The ledger of a mapper or scorer: Parquet files, each of a batch of rows, named by its range of ids."""

    def files(self) -> list[str]:
        """Names of the ledger's files."""
        return [name for name in self.store.list(self.name) if name.endswith(".parquet")]

    def read(self, names: Iterable[str]) -> dict[tuple[str, str], dict[str, Any]]:
        """(row id, digest of what is read) → its line: outcome, reason, and the result's columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = {}
        for name in sorted(names):
            for line in pq.read_table(pa.BufferReader(self.store.read_bytes(name))).to_pylist():
                found[line["id"], line["read"]] = line
        return found

    def token(self, ids: Sequence[str]) -> str:
        """The name of a batch's files, without its ending."""
        return f"{_hex(min(ids))}-{_hex(max(ids))}-{new_token()}"

    def write(self, token: str, lines: pa.Table, calls: Mapping[str, Any]) -> None:
        """Keeps a batch: its lines, then what they cost."""
        self.store.write_bytes(f"{self.name}/{token}.parquet", encoded(lines))
        self.store.write_json(f"{self.name}/{token}{CLOSED}", calls)


def overlapping(names: Iterable[str], first: str, last: str) -> list[str]:
    """The files that may hold ids of a range."""
    found = []
    for name in names:
        low, high, _ = name.rpartition("/")[2].split("-")
        if low <= _hex(last) and _hex(first) <= high:
            found.append(name)
    return found


def lines_schema(result: Columns) -> pa.Schema:
    """The schema of a row ledger's file."""
    import pyarrow as pa

    fixed = pa.schema([(name, pa.string()) for name in ("id", "read", "outcome", "reason")])
    return pa.schema([*fixed, *(field for field in schema(result) if field.name != "id")])


def columns_read(stage: Stage, columns: Columns) -> list[str]:
    """The columns whose content decides whether a row was asked before: of a scorer, those it needs and the text; of a
    mapper, which passes the others on, all."""
    needed = stage.columns_needed().get("rows", {})
    if isinstance(stage, Mapper) or not needed:
        return sorted(columns)
    return sorted(name for name in columns if name in needed or name in CONTENT)


def read_digests(table: pa.Table, names: Sequence[str]) -> list[str]:
    """For each row, the digest of the named columns."""
    return [digest(row)[:32] for row in table.select(list(names)).to_pylist()]


def _hex(row: str) -> str:
    """An id's first 16 bytes, in an order that sorts as the id does."""
    return row.encode("utf-8", "surrogatepass")[:16].hex()


# --- rounds ---------------------------------------------------------------------------------------------------


class RoundLedger(Ledger):
    """The ledger of a rounds stage: JSON files of one or a few answers each, below a folder for each round."""

    def read(self, round: int) -> dict[str, dict[str, Any]]:
        """Prompt digest → answer, of one round."""
        found: dict[str, dict[str, Any]] = {}
        for name in self.store.list(f"{self.name}/{round:05d}"):
            if name.endswith(ANSWERS) and (content := self.store.read_json(name)):
                for line in content["answers"]:
                    found.setdefault(line["prompt"], line)
        return found

    def token(self, round: int) -> str:
        return f"{round:05d}/{new_token()}"

    def write(self, token: str, number: int, answers: Sequence[tuple[str, Answer]]) -> None:
        """Keeps some answers, each with its prompt's digest."""
        lines = [{"prompt": prompt, **asdict(answer)} for prompt, answer in answers]
        self.store.write_json(f"{self.name}/{token}-{number:04d}{ANSWERS}", {"answers": lines})

    def close(self, token: str, calls: Mapping[str, Any]) -> None:
        """Says what the requests of a token cost, once all are answered."""
        self.store.write_json(f"{self.name}/{token}{CLOSED}", calls)


def prompt_digest(request: Request) -> str:
    """What a request asks, whatever its id."""
    return digest(json.loads(canonical(request.asked())))[:32]
