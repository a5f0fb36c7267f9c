"""How numbers and formulas are read; Number's table of answers has the rest."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

from graftline.stages.score.arithmetic import (
    Unreadable,
    fraction,
    last_fraction,
    read,
    same_formula,
    same_number,
    value,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", (3, False)), ("-1,234.5 km", (Fraction("-1234.5"), False)), ("12 %", (12, True)), ("2 3/4", ("11/4",
        False)),
        ("3 of 4", None), ("3+4", None), ("x3", None), ("", None), ("12,34", None), ("1/0", None), ("v1.2.3", None),
    ],
)  # fmt: skip
def test_one_number(text: str, value: tuple[int, bool] | None) -> None:
    assert fraction(text) == (None if value is None else (Fraction(value[0]), value[1]))


def test_the_last_number() -> None:
    assert last_fraction("from 5 to -7.5%, I think") == (Fraction("-7.5"), True)
    assert last_fraction("none") is None
    assert last_fraction("10-5") == (5, False)


def test_whole_numbers_have_no_tolerance() -> None:
    assert not same_number((Fraction(10**9), False), (Fraction(10**9 + 1), False))
    assert same_number((Fraction(10**9), False), (Fraction(10**10 + 1, 10), False))


def test_formulas() -> None:
    assert same_formula("(a+b)*(a-b)", "a^2 - b^2") is True
    assert same_formula("a+b", "a+2b") is False
    assert same_formula("1/(x-x)", "1") is not True
    assert same_formula("log(x)", "nonsense here") is None
    assert same_formula("2^(3^x)", "2^(3^(x+1)/3)") is True
    with pytest.raises(Unreadable):
        read("+".join("x" * 101))
    with pytest.raises(Unreadable):
        value(read("x.real"), {"x": 1})


@pytest.mark.parametrize("formula", ["2^x", "x^2", "sqrt(x)", "log(x) + sin(x)/x", "abs(-x)", "exp(-x)"])
def test_a_formulas_value(formula: str) -> None:
    names = {"sqrt": math.sqrt, "log": math.log, "sin": math.sin, "exp": math.exp, "abs": abs, "x": 1.5}
    expected = eval(formula.replace("^", "**"), {"__builtins__": {}}, names)
    assert float(value(read(formula), {"x": 1.5})) == pytest.approx(expected, rel=1e-12)


def test_threads_compare_alike() -> None:
    pairs = [(f"sin(x+{n})^2 + log({n + 2})", f"1 - cos(x+{n})^2 + log({n + 2})") for n in range(12)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda pair: same_formula(*pair), pairs)) == [True] * len(pairs)
