"""Templates over a record's columns: `"{subject}: {text}"`. Plain names only: nothing is evaluated or looked into."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from string import Formatter
from typing import Any

from graftline.stages.errors import InvalidField, RowFault


@functools.lru_cache(maxsize=256)
def pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """The template as (text, the column that follows it or None).

    Raises:
        ValueError: it is no template.
    """
    found = []
    for text, column, form, conversion in Formatter().parse(template):
        if column is not None and (form or conversion):
            raise ValueError("has a format or conversion in braces; only {column} is known")
        if column == "":
            raise ValueError("has empty braces; name the column: {column}")
        found.append((text, column))
    return tuple(found)


def check_template(template: str, where: str, *, known: Collection[str] | None = None, at_least: int = 0) -> None:
    """Refuse what is no template, and one that names other columns than those known or fewer than needed.

    Raises:
        InvalidField: with `where`.
    """
    try:
        columns = [column for _, column in pieces(template) if column is not None]
    except ValueError as error:
        raise InvalidField(str(error), where=where, do="write braces that are text twice: {{ }}") from None
    if len(columns) < at_least:
        raise InvalidField(f"{template!r} names no column", where=where, do="name one in braces, such as {text}")
    unknown = sorted(set(columns) - set(known if known is not None else columns))
    if unknown:
        raise InvalidField(f"names {unknown[0]!r}", where=where, do=f"use {', '.join(sorted(known or ()))}")


def fill(template: str, record: Mapping[str, Any]) -> str:
    """The template with a record's values.

    Raises:
        RowFault: a column is not there, or holds no text.
    """
    return "".join(
        text if column is None else text + text_of(value_of(record, column), column)
        for text, column in pieces(template)
    )


def value_of(record: Mapping[str, Any], column: str) -> Any:
    """A record's value.

    Raises:
        RowFault: the column is not there; says which are.
    """
    if column not in record:
        names = [str(name)[:40] for name in record]
        has = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        raise RowFault(f"has no column {column!r} (it has {has or 'none'})")
    return record[column]


def text_of(value: Any, column: str) -> str:
    """A value as text: strings as they are, numbers, lists and mappings as JSON.

    Raises:
        RowFault: there is no value, or it is binary.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise RowFault(f"has no value in the column {column!r}")
    if isinstance(value, bytes):
        raise RowFault(f"has binary data in the column {column!r}")
    if isinstance(value, (bool, int, float, list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)  # dates, decimals
