"""The names by which a sweep's values are written."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages import sweep
from graftline.stages.sweep.listed import Listed
from graftline.stages.sweep.ranged import Ranged


@pytest.mark.parametrize(
    ("written", "means"),
    [
        (sweep.grid(4, 8), Listed(values=(4, 8))),
        (sweep.choice(4, 8), Listed(values=(4, 8))),
        (sweep.uniform(0, 1), Ranged(low=0.0, high=1.0)),
        (sweep.log_uniform(1e-5, 1e-3), Ranged(low=1e-5, high=1e-3, log=True)),
        (sweep.integers(1, 5), Ranged(low=1.0, high=5.0, whole=True)),
    ],
)
def test_each_name_makes_its_domain(written: Any, means: Any) -> None:
    assert written == means


def test_two_names_for_one_list_are_one_sweep(pipe: Any) -> None:
    def ranks(domain: Any) -> Any:
        return sweep.Sweep(stage=pipe.tuned, over={"knob.rank": domain})

    assert ranks(sweep.grid(4, 8)) == ranks(sweep.choice(4, 8)) != ranks(sweep.grid(8, 4))


def test_each_draws_as_its_name_says() -> None:
    shares = [place / 1000 for place in range(1000)]
    even, orders = ([domain.at(share) for share in shares] for domain in
                    (sweep.uniform(1e-4, 1.0), sweep.log_uniform(1e-4, 1.0)))  # fmt: skip
    assert sum(value < 0.01 for value in even) < 20 and sum(value < 0.01 for value in orders) == 500
    whole = [sweep.integers(1, 4).at(share) for share in shares]
    assert {value: whole.count(value) for value in whole} == dict.fromkeys((1, 2, 3, 4), 250), "both ends, and evenly"
