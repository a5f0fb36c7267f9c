"""Numbers and formulas: a table of right and wrong answers, and nothing a model wrote is ever run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.stages.score import Number
from graftline.stages.score.arithmetic import FUNCTIONS

CHECK = Number()
RIGHT = [
    ("3", "3"), ("3.0", "3"), ("$3", "3"), ("6/2", "3"), ("3.", "3"), ("3 apples", "3"), ("+3", "3"), ("003", "3"),
    ("1,234", "1234"), ("1,234,567.50", "1234567.5"), ("-5", "-5"), ("−5", "-5"), ("50%", "50"), ("50 %", "0.5"),
    ("0.5", "50%"), ("50 percent", "50%"), ("1e3", "1000"), (".5", "1/2"), ("2 1/2", "2.5"), ("-$4.50", "-4.5"),
    ("0.3333333333", "1/3"), (r"\frac{1}{3}", "1/3"), (r"\boxed{\frac{6}{2}}", "3"), (r"$\boxed{42}$", "42"),
    ("She has 4 + 5 = 9 apples, so 9 * 2 = 18.\n#### 18", "18"), ("The answer is 18.", "18"),
    ("the final answer is: $1,000", "1000"), ("First 5, then 7, so it must be 12", "12"), ("x=-5", "-5"),
    (r"so \boxed{3}. Wait, no: \boxed{4}", "4"), ("#### 5", "#### 5.0"), (r"\boxed{x^2+2x+1}", "(x+1)^2"),
    ("2*x + 3*y", "3y + 2x"), (r"\sqrt{8}", r"2\sqrt{2}"), (r"\frac{\sqrt{2}}{2}", r"1/\sqrt{2}"), ("2*pi", r"2\pi"),
    (r"\dfrac{x+1}{2}", "0.5x + 0.5"), ("x = 7", "7"), ("sin(x)^2 + cos(x)^2", "1"), ("10 - 5 = 5", "5"),
    ("the total is 3 dollars", "$3"), ("18\n", "18"), ("#### 3, since 4 left", "3"), ("#### about 3.0 (of 7)", "3"),
    ("#### 1+2 = 3", "3"), ("1000000.4", "1000000"), ("1 / 2", "0.5"),
    ("99999999999999999999", "99999999999999999999"), ("e^{x^2}", "e^(x*x)"), ("2^{2^3}", "256"), ("sin(pi)", "0"),
    ("2^{1000} + 1 - 2^{1000}", "1"), ("(-8)^(1/3)", "1 + sqrt(-3)"), (r"6.5 \times 10^{-34}", "0.65 * 10^{-33}"),
]  # fmt: skip
WRONG = [
    ("13", "3"), ("3", "13"), ("5", "-5"), ("-5", "5"), ("3.1", "3"), ("30", "3"), ("0.3", "1/3"), ("1234", "1,235"),
    ("no idea", "3"), ("", "3"), ("#### 17 because 18", "18"), ("The answer is 18, not 19. I mean 20", "19"),
    ("50%", "5"), ("#### unknown, but 18 came up", "18"), (r"\boxed{x+1}", "x+2"), ("x**2", "2*x"), ("x", "y"),
    (r"\boxed{12", "13"), ("1/0", "0"), ("#### 1/0", "3"), ("3 or 4", "3"), ("2.0000101", "2"), ("10-5", "-5"),
    ("99999999999999999998", "99999999999999999999"), ("1000001", "1000000"), ("x+1 and so on", "x+2"),
    ("10^{-30}", "10^{-31}"), ("1/(sqrt(2)^2 - 2)", "x"),
]  # fmt: skip
UNKNOWN = [
    ("3", None), ("3", ""), ("3", "  "), ("3", "it depends"), ("3", "9**9**9**9"), ("3", "#### nothing known"),
    ("3", "log(0)"), ("3", "1/(x-x)"),
]  # fmt: skip
GROWS = [
    "exp(exp(exp(99)))", "sin(exp(exp(18)))", "sin(exp(exp(23)))", "sin(((9^999)^999)^99)", "sin(((9^999)^999)^999)",
    "exp(-exp(1600))", "exp(9^700)", "sin(9^700)", "sin(sqrt(-9^700))", "sqrt(-1)^(9^700)", "x^(9^700)", "9^700^700",
    "(1 + 10^-99)^(10^700)", "1/10^700/10^700/10^700", "log(10^-99)^999", "(10^-99)^999^2",
]  # fmt: skip
COSTLY = [
    "ln(" * 38 + "-x" + ")" * 38, "sin(" * 39 + "x" + ")" * 39, "(-x)" + "**.7" * 30 + "**x",
    "(.9*sqrt(-1)+.2)**999.5+" * 6 + "x", "sin(999999-x)+" * 10 + "1", "+".join(["(-7)**x"] * 13),
]  # fmt: skip
FORMULAS = st.recursive(
    st.sampled_from(["x", "y", "pi", "e", "0", "1", "2", ".7", "99", "999", "10^-99", "9^700", "999999999999999"]),
    lambda inner: st.one_of(
        st.builds(lambda a, by, b: f"({a}){by}({b})", inner, st.sampled_from("+-*/^^^"), inner),
        st.builds(lambda name, a: f"{name}({a})", st.sampled_from(FUNCTIONS), inner),
        st.builds(lambda a: f"-{a}", inner),
        st.builds(lambda a, b: rf"\frac{{{a}}}{{{b}}}", inner, inner),
    ),
    max_leaves=20,
)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fails, in place of hanging, where its body computes longer (the machine's other work does not count)."""

    def late(*_: Any) -> None:
        pytest.fail(f"takes longer than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize(("response", "reference"), RIGHT)
def test_right(response: str, reference: str) -> None:
    assert CHECK.checked(response, reference).verified == 1


@pytest.mark.parametrize(("response", "reference"), WRONG)
def test_wrong(response: str, reference: str) -> None:
    found = CHECK.checked(response, reference)
    assert found.verified == 0 and found.why


@pytest.mark.parametrize(("response", "reference"), UNKNOWN)
def test_a_reference_that_cannot_be_read_is_missing(response: str, reference: str | None) -> None:
    found = CHECK.checked(response, reference)
    assert found.verified is None and found.why


@pytest.mark.parametrize("reference", sorted({reference for _, reference in RIGHT + WRONG}))
def test_a_reference_verifies_itself(reference: str) -> None:
    assert CHECK.checked(reference, reference).verified == 1
    assert CHECK.checked(f"Let me see.\n#### {reference.removeprefix('#### ')}", reference).verified == 1


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_integers_are_equal_exactly_when_they_are(one: int, other: int) -> None:
    assert CHECK.checked(f"so it is {one}", str(other)).verified == int(one == other)
    assert CHECK.checked(f"so it is {one:,}", str(one)).verified == 1


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('false')", "().__class__.__bases__[0]", "9**9**9**9**9", "(9**999)**999**x",
        "((((((2**999)**999)**999)**999)**999)**999)", "sin(" * 60 + "x" + ")" * 60, "lambda: 0", "x" * 10_000,
        "(" * 5000, "\\frac{" * 3000, "1" * 5000, "9e999", "1e308*1e308", "[x for x in (1,)]", "open('a')",
        "\\boxed{" * 2000,
        "x if x else y", "1,000" * 2000, "the answer is" + "\n" * 50_000,
    ],
)  # fmt: skip
def test_nothing_is_run_and_nothing_takes_long(attack: str) -> None:
    with within(2):
        assert CHECK.checked(f"#### {attack}", "x + 1").verified == 0
        assert CHECK.checked(attack, "3").verified in (0, None)
        assert CHECK.checked("3", attack).verified in (0, None)
        CHECK.checked(attack, attack)


@pytest.mark.parametrize("formula", GROWS)
def test_what_grows_too_large_is_not_read(formula: str) -> None:
    with within(1):
        assert CHECK.checked(f"#### {formula}", "3").verified == 0
        assert CHECK.checked(f"#### {formula}", "x + 1").verified == 0


@pytest.mark.parametrize("formula", COSTLY)
def test_the_costliest_that_is_read(formula: str) -> None:
    with within(1.5):
        assert CHECK.checked(f"#### ({formula})", formula).verified == 1


@pytest.mark.parametrize("text", ["1/" + "1" * 5000, "1 2/" + "1" * 5000, "1" * 5000 + " 1/2", "1" * 5000])
def test_a_number_of_any_length(text: str) -> None:
    assert CHECK.checked(f"#### {text}", "3").verified == 0
    assert CHECK.checked("3", text).verified in (0, None)


@settings(max_examples=200, deadline=None)
@given(FORMULAS, FORMULAS)
def test_no_formula_takes_long(one: str, other: str) -> None:
    with within(1.5):
        CHECK.checked(f"#### {one}", other)
    with within(1.5):
        assert CHECK.checked(f"#### {one}", one).verified in (1, None)
