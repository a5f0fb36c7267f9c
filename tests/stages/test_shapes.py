"""The shapes say which function an author left out."""

from typing import Any

import pytest

from graftline.stages.shapes import Mapper, Rounds, RoundsState, Scorer, Selector, Source


class Rows0(Source):
    pass


@pytest.mark.parametrize(
    ("shape", "function", "arguments"),
    [
        (Mapper, "map_rows", (None, None)),
        (Scorer, "score_rows", (None, None)),
        (Selector, "select_rows", (None, None)),
    ],
)
def test_a_missing_function_is_named(shape: Any, function: str, arguments: tuple[Any, ...]) -> None:
    class Mine(shape):  # type: ignore[misc]
        pass

    with pytest.raises(NotImplementedError, match=f"Mine.{function}"):
        getattr(Mine(rows=Rows0()), function)(*arguments)


def test_sources_and_rounds_too() -> None:
    class Asking(Rounds):
        pass

    with pytest.raises(NotImplementedError, match="make_rows"):
        Rows0().make_rows(None)  # type: ignore[arg-type]
    for function, arguments in (("asks", ()), ("start", (None,)), ("propose", (None, 0)), ("finish", (None,))):
        with pytest.raises(NotImplementedError, match=f"Asking.{function}"):
            getattr(Asking(), function)(*arguments)
    assert RoundsState().made == []
