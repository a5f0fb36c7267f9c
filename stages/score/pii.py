"""Personal data and secrets, found by rule and taken out."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.score.personal_data import KINDS, Found, Kind, findings
from graftline.stages.shapes import Mapper
from graftline.stages.specification import Paper, Pins
from graftline.stages.stage import Context

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS = ("messages", "answer", "prompt", "chosen", "rejected", "instruction", "input", "reference")
"""Columns that hold what people and models say."""
ADDRESSES = {
    4: ("10.0.0.17", "10.40.3.9", "172.16.21.5", "192.168.7.33", "192.168.90.4"),
    6: ("fd00::11", "fd00:4::9", "fd12:21::5", "fd19:7::33", "fd19:90::4"),
}
"""What IP addresses become: private ones of the same family, so that the text stays what it was."""
SHORTEST_KEY = 16


class Pii(Mapper):
    """Takes personal data and secrets out of rows' texts: e-mail and IP addresses, phone, card and social-security
    numbers, IBANs, keys, passwords.

    Adds `pii`, where they stood in the original text, as JSON (column, turn, kind, start, end, and the number of the
    value among the row's distinct ones; never the value, nor a hash of it), and `pii_count`, how many distinct ones
    there are. Rules find them, not a model: names and addresses of people stay. Ids and groups stay, since rows are
    split by them. The rows it reads, and those it drops, keep their texts in the store.

    Args:
        action: `mask` puts `<EMAIL>` and the like in their place (of IP addresses, private ones of the same family, one
            for each value up to five); `pseudonym` puts `<EMAIL-3f2a91bc>`, the same for the same value in all rows
            made with one key, and not to be undone without it; `drop` filters the row; `report` changes nothing.
        kinds: what is looked for.
        texts: which columns (default: those of `messages`, `answer`, `prompt`, `chosen`, `rejected`, `instruction`,
            `input` and `reference` that there are).
        key_env: for `pseudonym`: name of the environment variable, where the stage runs, with the key, at least 16
            characters.

    Raises:
        InvalidField: the key is missing or short.

    The properties its tests check: what was taken out is not found again; a number with a wrong checksum stays, and so
    does a version that looks like an address; on a synthetic corpus precision and recall are at least 0.95.
    """

    method = "score.pii"
    papers = (Paper("SantaCoder: don't reach for the stars!"),)
    adds = {"pii": "string", "pii_count": "int64"}

    action: Literal["mask", "pseudonym", "drop", "report"] = "mask"
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = KINDS
    texts: tuple[str, ...] = ()
    key_env: str | None = None

    def check(self) -> None:
        if self.action == "pseudonym" and not self.key_env:
            raise InvalidField("pseudonyms need a key", where="Pii.key_env", do="name the variable that holds it")
        for column in self.texts:
            if self.rows.columns.get(column) not in ("string", "messages"):
                raise InvalidField(f"{column!r} is no column of texts", where="Pii.texts", do="name string columns")

    def pins(self, resolve: Pins) -> Mapping[str, Any]:
        if self.action != "pseudonym" or self.key_env is None:
            return {}
        name = self.key_env
        return {"key_env": resolve.pinned(f"key:{name}", lambda: identity(secret(name)))}

    def map_rows(self, table: pa.Table, context: Context) -> pa.Table:
        import pyarrow as pa

        names = [name for name in self.texts or TEXTS if name in table.column_names]
        named = self._pseudonym(context) if self.action == "pseudonym" else None
        rows = [Row(self.kinds, named) for _ in range(table.num_rows)]
        for name in names:
            column = table[name]
            changed = [row.of(name, value) for row, value in zip(rows, column.to_pylist(), strict=True)]
            if self.action in ("mask", "pseudonym"):
                place = table.schema.get_field_index(name)
                table = table.set_column(place, table.schema.field(name), pa.array(changed, column.type))
        spans = [json.dumps(row.spans, separators=(",", ":")) for row in rows]
        table = table.append_column("pii", pa.array(spans, pa.string()))
        table = table.append_column("pii_count", pa.array([len(row.values) for row in rows], pa.int64()))
        if self.action == "drop":
            reasons = [f"has personal data: {', '.join(row.kinds_found)}" if row.values else None for row in rows]
            table = table.append_column("filtered", pa.array(reasons, pa.string()))
        return table

    def _pseudonym(self, context: Context) -> Callable[[Kind, str], str]:
        key = secret(self.key_env or "")
        if context.pinned(f"key:{self.key_env}") not in (None, identity(key)):
            raise InvalidField(
                "the key is another one than when the run was planned",
                where="Pii.key_env",
                do="set the same everywhere",
            )

        def named(kind: Kind, value: str) -> str:
            mark = hmac.new(key, f"{kind}:{value}".encode(), hashlib.sha256).hexdigest()[:8]
            return f"<{kind.upper()}-{mark}>"

        return named


class Row:
    """One row on its way through: the distinct values found so far, and where.

    Args:
        kinds: what is looked for.
        named: what replaces a value (None: the mask of its kind).
    """

    def __init__(self, kinds: tuple[Kind, ...], named: Callable[[Kind, str], str] | None) -> None:
        self.kinds, self.named = kinds, named
        self.values: dict[tuple[Kind, str], str] = {}
        self.spans: list[dict[str, Any]] = []

    @property
    def kinds_found(self) -> list[str]:
        """The kinds of its values, sorted."""
        return sorted({kind for kind, _ in self.values})

    def of(self, column: str, value: Any) -> Any:
        """A column's value with everything replaced."""
        if isinstance(value, list):
            return [
                {**turn, "content": self._replaced(turn["content"], column, index)} for index, turn in enumerate(value)
            ]
        return self._replaced(value, column, None)

    def _replaced(self, text: str | None, column: str, turn: int | None) -> str | None:
        pieces, last = [], 0
        for found in findings(text, self.kinds) if text else ():
            value = found.kind, text[found.start : found.end].casefold()  # type: ignore[index]
            by = self.values.setdefault(value, self._by(found, value[1]))
            where = {"column": column} | ({} if turn is None else {"turn": turn})
            number = list(self.values).index(value) + 1
            self.spans.append(where | {"kind": found.kind, "start": found.start, "end": found.end, "value": number})
            pieces += [text[last : found.start], by]  # type: ignore[index]
            last = found.end
        return "".join([*pieces, text[last:]]) if pieces and text else text

    def _by(self, found: Found, value: str) -> str:
        if self.named is not None:
            return self.named(found.kind, value)
        if found.kind == "ip":
            family = ADDRESSES[6 if ":" in value else 4]
            return family[sum(kind == "ip" for kind, _ in self.values) % len(family)]
        return f"<{found.kind.upper()}>"


def secret(name: str) -> bytes:
    """The key in an environment variable.

    Raises:
        InvalidField: it is missing or short.
    """
    key = os.environ.get(name, "")
    if len(key) < SHORTEST_KEY:
        raise InvalidField(
            f"the environment variable {name} {'is too short' if key else 'is not set'}",
            where="Pii.key_env",
            do=f"set it to at least {SHORTEST_KEY} random characters, where the stage runs",
        )
    return key.encode()


def identity(key: bytes) -> str:
    """What stands for a key in fingerprints: slow to compute, so that a key is not found from it."""
    return hashlib.scrypt(key, salt=b"graftline pii", n=2**14, r=8, p=1, dklen=8).hex()
