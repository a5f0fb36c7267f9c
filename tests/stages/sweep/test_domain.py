"""The slot of a swept field's values: what an own one must say, and what it may leave out."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages import sweep
from graftline.stages.errors import InvalidField
from graftline.stages.sweep.domain import Domain
from graftline.stages.sweep.points import combinations


class Doublings(Domain):
    """1, 2, 4, … : a list that is computed."""

    origin = "a test"
    count: int = 4

    def listed(self) -> tuple[Any, ...]:
        return tuple(2**place for place in range(self.count))

    def at(self, share: float) -> Any:
        return 2 ** int(share * self.count)


class Endless(Domain):
    """Numbers from 0 to 1, of which no end is named."""

    origin = "a test"

    def at(self, share: float) -> Any:
        return share


def test_ones_own_domain_is_searched_like_the_others(pipe: Any, go: Any) -> None:
    own = sweep.Sweep(stage=pipe.tuned, over={"knob.rank": Doublings(count=5)})
    assert [trial["values"] for trial in go(own)["result"].metrics["trials"]] == [
        {"knob.rank": rank} for rank in (1, 2, 4, 8, 16)
    ]
    drawn = sweep.Sweep(stage=pipe.tuned, over={"knob.rank": Doublings()}, search="random", trials=9)
    assert {point[0] for point in drawn.points()} == {1, 2, 4, 8}, "there are no more to draw"


def test_what_is_listed_is_tried_when_the_sweep_is_built(pipe: Any) -> None:
    """`ends` follows `listed`, so that a wrong value is refused before anything runs."""
    assert Doublings(count=3).ends() == (1, 2, 4)
    with pytest.raises(InvalidField, match=r"knob\.rank"):
        sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(1, "two")})


def test_what_has_no_list_has_no_number_of_combinations_and_no_grid(pipe: Any) -> None:
    assert Endless().listed() is None and Endless().ends() == ()
    assert combinations([Doublings(count=3), Doublings(count=2)]) == 6
    assert combinations([Doublings(count=3), Endless()]) is None
    with pytest.raises(InvalidField, match="has no values"):
        sweep.Sweep(stage=pipe.tuned, over={"knob.lr": Endless()}, search="random", trials=2)


@pytest.mark.parametrize("call", [lambda: Domain().at(0.5), lambda: Domain().for_tune()])
def test_what_an_own_domain_must_say_is_named(call: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"Domain\.(at|for_tune)"):
        call()
    assert Domain().from_tune(3) == 3, "Tune's values are the field's, where nothing else is said"
