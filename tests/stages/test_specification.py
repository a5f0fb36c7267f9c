"""Values: equal, immutable, and only what JSON can say."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages.errors import InvalidField
from graftline.stages.shapes import Source

from .conftest import Both, Lines, chain


def test_equal_values_are_equal_and_hash_alike() -> None:
    assert chain(n=2) == chain(n=2)
    assert hash(chain(n=2)) == hash(chain(n=2))
    assert chain(n=2) != chain(n=3)
    assert chain(port=1) != chain(port=2)
    assert len({chain(n=2), chain(n=2), chain(n=3)}) == 2


def test_containers_become_immutable_and_ordered() -> None:
    stage = Both(rows=[Lines(), Lines(n=2)], named={"b": Lines(), "a": Lines(n=2)})
    assert isinstance(stage.rows, tuple)
    assert stage == Both(rows=(Lines(), Lines(n=2)), named={"a": Lines(n=2), "b": Lines()})
    with pytest.raises(TypeError):
        stage.named["c"] = Lines()  # type: ignore[index]
    with pytest.raises(Exception, match="frozen"):
        stage.rows = ()  # type: ignore[misc]


def test_a_value_a_stage_cannot_hold_is_refused() -> None:
    class Open(Source):
        anything: Any = None

    with pytest.raises(InvalidField, match=r"Open\.anything: .*not a value a stage can hold"):
        Open(anything={1, 2})
