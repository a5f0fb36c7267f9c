"""Rows: the fixed columns, their Arrow types, their ids and groups.

Column types are written as short names (`float64`, `string`, `list<string>`, `messages`), so that declaring a stage
needs no Arrow import; `arrow_type` turns them into Arrow types.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftline.stages.union_find import UnionFind

if TYPE_CHECKING:
    import pyarrow as pa

Columns = Mapping[str, str]

FIXED: Columns = {
    "id": "string",
    "parents": "list<string>",
    "group": "string",
    "source": "string",
    "messages": "messages",
    "answer": "string",
    "gen": "gen",
}
"""Columns of every row of instruction data. `answer` is the reference and repeats the final assistant turn."""

PREFERENCE: Columns = {
    **{name: type_ for name, type_ in FIXED.items() if name not in ("messages", "answer")},
    "prompt": "messages",
    "chosen": "string",
    "rejected": "string",
}
"""Columns of every row of preference data."""

NUMBERS = ("float64", "int64")


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a short name.

    Raises:
        ValueError: for a name that is no type.
    """
    import pyarrow as pa

    if name == "messages":
        return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    if name == "gen":
        return pa.struct([("stage", pa.string()), ("model", pa.string()), ("round", pa.int64()), ("seed", pa.int64())])
    if name.startswith("list<") and name.endswith(">"):
        return pa.list_(arrow_type(name[5:-1]))
    return pa.type_for_alias(name)


def schema(columns: Columns) -> pa.Schema:
    """The Arrow schema of columns."""
    import pyarrow as pa

    return pa.schema([(name, arrow_type(type_)) for name, type_ in columns.items()])


def canonical(value: Any) -> str:
    """One JSON text for one value: keys sorted, no spaces, non-finite numbers spelled out, lone surrogates escaped."""

    def plain(item: Any) -> Any:
        if type(item) in (str, int, bool, type(None)):
            return item
        if isinstance(item, float) and not math.isfinite(item):
            return {"float": repr(item)}
        if isinstance(item, Mapping):
            return {str(key): plain(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(inner) for inner in item]
        if isinstance(item, bytes):
            return {"bytes": item.hex()}
        return item

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def row_id(parents: Sequence[str], content: Any, occurrence: int = 0) -> str:
    """The id of a row: a hash (32 hex digits) of its parents' ids, its own content and its occurrence number among
    equals, so that appending a seed changes no other row's id."""
    return digest([sorted(parents), content, occurrence])[:32]


def row_ids(rows: Iterable[tuple[Sequence[str], Any]]) -> list[str]:
    """Ids of rows given as (parents, content), equal rows numbered in their order."""
    seen: dict[str, int] = {}
    ids = []
    for parents, content in rows:
        first = row_id(parents, content)
        count = seen[first] = seen.get(first, -1) + 1
        ids.append(first if not count else row_id(parents, content, count))
    return ids


def join_groups(groups: Iterable[str]) -> str:
    """The group of a row made from parents of these groups: all of them, which `Split` then never cuts apart."""
    return "|".join(sorted({part for group in groups for part in group.split("|")}))


def split_groups(group: str) -> tuple[str, ...]:
    """The groups a row's group joins."""
    return tuple(group.split("|"))


def group_value(value: str) -> str:
    """A group as a reader writes it: the separator of joined groups is escaped."""
    return value.replace("%", "%25").replace("|", "%7C")


def user_text(messages: Iterable[Mapping[str, Any]] | None) -> str:
    """What the user says in a conversation: the user turns, a blank line between two. It is what rows are compared
    by, so that a row is known by what was asked, whatever the system message or the answer."""
    return "\n\n".join(turn["content"] or "" for turn in messages or () if turn["role"] == "user")


def derived_seed(seed: int, row: str, attempt: int = 0) -> int:
    """A seed (63 bits) that depends on the stage's seed, the row's id and the attempt alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}/{attempt}".encode()).digest()[:8], "big") >> 1


def rows_digest(table: pa.Table) -> str:
    """The digest of rows: canonical values sorted by id, never file bytes. Vectors (`list<float32>`) enter as the
    bytes of their numbers, and large contents (`large_binary`) as their digest: as Python numbers, or text, those of
    50,000 rows would take gigabytes."""
    total = hashlib.sha256()
    names = sorted(table.column_names)
    values = zip(*(_values(table[name]) for name in names), strict=True)
    for line in sorted(zip(table["id"].to_pylist(), map(canonical, values), strict=True)):
        total.update(f"{line[0]}\t{line[1]}\n".encode())
    total.update(canonical(names).encode())
    return total.hexdigest()


def joined(groups: Sequence[Sequence[str]]) -> list[str]:
    """For each row, the name of all that its groups are joined with, over whatever chain of rows: the smallest of
    them."""
    found = UnionFind()
    for row in groups:
        for other in row[1:]:
            found.join(row[0], other)
    return [found.root(row[0]) for row in groups]


def _values(column: pa.ChunkedArray) -> list[Any]:
    import pyarrow as pa

    if column.type == pa.large_binary():
        return [hashlib.sha256(value.as_buffer()).digest() if value.is_valid else None for value in column]
    if column.type != pa.list_(pa.float32()):
        found: list[Any] = column.to_pylist()
        return found
    return [
        value.values.to_numpy(zero_copy_only=False).astype("<f4").tobytes()
        if value.is_valid and not value.values.null_count
        else value.as_py()
        for value in column
    ]
