"""Rows to select from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from graftline.stages.rows import FIXED, schema
from graftline.stages.shapes import Source
from graftline.stages.stage import Context


class Given(Source):
    """Rows that are there, with these columns beside the fixed ones."""

    has: Mapping[str, str] = {}

    def columns_made(self) -> Mapping[str, str]:
        return {**FIXED, **self.has}


@pytest.fixture
def given_rows() -> type[Given]:
    return Given


@pytest.fixture
def table() -> Callable[[Sequence[Mapping[str, Any]]], pa.Table]:
    """A table sorted by id, of rows given with a few of their columns; the group is the id unless given."""

    def make(rows: Sequence[Mapping[str, Any]], **has: str) -> pa.Table:
        whole = [{"parents": [], "group": row["id"], "source": "", "messages": [], **row} for row in rows]
        return pa.Table.from_pylist(whole, schema=schema({**FIXED, **has})).sort_by("id")

    return make


@pytest.fixture
def context() -> Context:
    """Selectors that ask their context for nothing get none."""
    return None  # type: ignore[return-value]
