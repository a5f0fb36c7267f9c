"""Numbers and formulas as people write them, compared without running anything they wrote."""

from __future__ import annotations

import ast
import functools
import re
import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

RELATIVE = Fraction(1, 10**6)
MOST_DIGITS = 100
NUMBER = re.compile(
    r"""(?<![\w.])(?P<sign>[-+](?:(?=[\d.])|(?=[$€£¥])))?      # no minus between two operands
        [$€£¥]?
        (?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<point>\.\d+)?
        (?P<exponent>[eE][-+]?\d{1,3}(?!\w))?
        (?:[ ]?/[ ]?(?P<below>\d+(?:\.\d+)?))?
        (?P<percent>[ ]?(?:%|percent\b))?""",
    re.VERBOSE,
)
LATEX = (
    (re.compile(r"\\(?:left|right|!|,|;|:|quad|displaystyle)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:text|mathrm|mbox)\{[^{}]*\}"), ""),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r"((\1)/(\2))"),
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\sqrt\{([^{}]*)\}"), r"sqrt(\1)"),
    (re.compile(r"\\(?:cdot|times)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\(pi|sin|cos|tan|log|ln|exp)(?![a-zA-Z])"), r"\1"),
    (re.compile(r"\^\{([^{}]*)\}"), r"**(\1)"),
    (re.compile(r"\\?[$€£]|\\\(|\\\)|\\\[|\\\]|\\%"), ""),
)
MOST_TEXT, MOST_CHARACTERS, MOST_NODES = 2000, 200, 120
"""How much is read as a formula: characters as written, characters of the formula itself, parts."""
LARGEST, SMALLEST = 2400, -330
"""Powers of two, 10^722 and 10^-99, between which a value in a formula lies: one above is not computed, one below is
0."""
MOST_EXPONENT, MOST_ARGUMENT = 1000, 10**6
PRECISION = 2800
"""Bits, so many that what rounding leaves of the largest values is smaller than the smallest."""
TOLERANCE = 10**24
"""Equal up to one in so many."""
FUNCTIONS = ("sqrt", "sin", "cos", "tan", "exp", "log", "ln", "abs")
TURN = threading.Lock()
POINTS = ("0.7390851332", "1.3247179572", "2.6220575542", "0.1149420448")
"""Where two formulas are compared; letters get points shifted against each other."""


def fraction(text: str) -> tuple[Fraction, bool] | None:
    """The number that a text is (its currency, unit or final punctuation apart), and whether it is a percentage; None
    where it is none, or several."""
    plain = _plain(text)
    if mixed := re.fullmatch(r"(-?)\s*(\d{1,100})\s+(\d{1,100})\s*/\s*(\d{1,100})(?:\s+[^\W\d]+)?\.?", plain):
        sign, whole, above, below = mixed.groups()
        if int(below):
            return (-1 if sign else 1) * (int(whole) + Fraction(int(above), int(below))), False
    found = _numbers(plain)
    if len(found) != 1:
        return None
    value, percent, (start, end) = found[0]
    # A unit or currency may stand beside it, not an operator.
    rest = f"{plain[:start]} {plain[end:]}"
    return None if re.search(r"[-+*/^=<>(){}\[\]]", rest) else (value, percent)


def last_fraction(text: str) -> tuple[Fraction, bool] | None:
    """The last number in a text."""
    found = _numbers(_plain(text))
    return found[-1][:2] if found else None


def same_number(one: tuple[Fraction, bool], other: tuple[Fraction, bool]) -> bool:
    """Whether two numbers are equal (up to one in a million, unless both are whole). Where only one of them is a
    percentage, `50 %` equals both 50 and 0.5: people leave the sign out."""
    (a, percent_a), (b, percent_b) = one, other
    if percent_a == percent_b:
        return _close(a, b)
    return _close(a, b) or _close(a / 100 if percent_a else a, b / 100 if percent_b else b)


def same_formula(one: str, other: str) -> bool | None:
    """Whether two formulas are equal: at several points their values agree to 24 digits. None where one of them cannot
    be read (only arithmetic, letters and a few functions are, and nothing is ever executed), or is no number there, or
    none of a size that is computed (`LARGEST`)."""
    try:
        left, right = read(one), read(other)
        names = sorted(_letters(left) | _letters(right))
        for shift in range(len(POINTS) - 1 if names else 1):
            at = {
                name: _numerics().mpf(POINTS[(number + shift) % len(POINTS)]) + number
                for number, name in enumerate(names)
            }
            # mpmath's tables of constants grow as they are used, which threads must not do at once.
            with TURN:
                a = value(left, at)
                b = a if one == other else value(right, at)
                if abs(a - b) * TOLERANCE > max(abs(a), abs(b)):
                    return False
    except (Unreadable, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    return True


class Unreadable(Exception):
    """A text is no formula, or none that is computed."""


def read(text: str) -> ast.expr:
    """The formula a text is, as Python's grammar reads it.

    Raises:
        Unreadable: it is too long, or has too many parts.
    """
    plain = _formula(text) if len(text) <= MOST_TEXT else ""
    if not plain or len(plain) > MOST_CHARACTERS:
        raise Unreadable
    tree = ast.parse(plain, mode="eval")
    if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
        raise Unreadable
    return tree.body


def value(node: ast.expr, at: Mapping[str, Any]) -> Any:
    """A formula's value.

    It cannot take long: there are at most `MOST_NODES` parts, each computed once, at one fixed precision, from values
    that are 0 or between `SMALLEST` and `LARGEST` in size; what would work longer on large ones (powers, and functions
    that grow or turn) has a closer bound.

    Args:
        at: letter → its value.

    Raises:
        Unreadable: it has anything but numbers, letters, + - * / ^ and a few functions, or a value in it is too large.
        ArithmeticError, ValueError: it is no number there.
    """
    numerics = _numerics()
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        # From its text, so that 0.1 is a tenth.
        found = numerics.mpf(repr(node.value)) if abs(node.value) < 1e15 else _refuse()
    elif isinstance(node, ast.Name):
        found = +numerics.pi if node.id == "pi" else +numerics.e if node.id == "e" else at.get(node.id) or _refuse()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = value(node.operand, at)
        found = -inner if isinstance(node.op, ast.USub) else inner
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
        name = node.func.id if node.func.id in FUNCTIONS else _refuse()
        inner = value(node.args[0], at)
        if name in ("exp", "sin", "cos", "tan") and abs(inner) > MOST_ARGUMENT:
            _refuse()
        found = abs(inner) if name == "abs" else getattr(numerics, name)(inner)
    elif isinstance(node, ast.BinOp):
        found = _joined(node.op, value(node.left, at), value(node.right, at))
    else:
        found = _refuse()
    return _bounded(found)


def _joined(by: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(by, ast.Add):
        return left + right
    if isinstance(by, ast.Sub):
        return left - right
    if isinstance(by, ast.Mult):
        return left * right
    if isinstance(by, ast.Div):
        return left / right
    if isinstance(by, ast.Pow) and abs(right) <= MOST_EXPONENT:
        return left**right
    return _refuse()


def _bounded(found: Any) -> Any:
    """A value, with what rounding left of a zero made one: `1/(sqrt(2)^2 - 2)` is no number."""
    numerics = _numerics()
    sizes = numerics.mag(found.real), numerics.mag(found.imag)
    if not (sizes[0] <= LARGEST and sizes[1] <= LARGEST):  # nor is what is not a number
        _refuse()
    real = found.real if sizes[0] >= SMALLEST else numerics.zero
    imaginary = found.imag if sizes[1] >= SMALLEST else numerics.zero
    return numerics.mpc(real, imaginary) if imaginary else real


@functools.cache
def _numerics() -> Any:
    """mpmath at our precision, apart from the one that all of the process share."""
    import mpmath

    numerics = mpmath.MPContext()
    numerics.prec = PRECISION
    return numerics


def _letters(formula: ast.expr) -> set[str]:
    return {each.id for each in ast.walk(formula) if isinstance(each, ast.Name) and len(each.id) == 1} - {"e"}


def _refuse() -> Any:
    raise Unreadable


def _formula(text: str) -> str:
    """A formula's text as Python's grammar reads it."""
    found = _plain(text).replace("{,}", "")
    found = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", found)
    for _ in range(4):  # fractions in fractions
        for pattern, by in LATEX:
            found = pattern.sub(by, found)
    if found.count("=") == 1 and re.fullmatch(r"\s*[a-zA-Z]\s*=.*", found):
        found = found.partition("=")[2]  # "x = 3"
    found = found.replace("^", "**").replace("{", "(").replace("}", ")").strip().rstrip(".")
    return re.sub(r"(?<=[\d)])\s*(?=[a-zA-Z(])", "*", found)


def _plain(text: str) -> str:
    return text.translate({0x2212: "-", 0x2013: "-", 0xD7: "*", 0xF7: "/", 0xA0: " ", 0x202F: " "}).strip()


def _numbers(text: str) -> list[tuple[Fraction, bool, tuple[int, int]]]:
    found = []
    for match in NUMBER.finditer(text):
        whole, point = match["whole"], match["point"]
        if not whole and not point:
            continue
        digits = f"{(whole or '0').replace(',', '')}{point or ''}{match['exponent'] or ''}"
        if len(digits) > MOST_DIGITS or len(match["below"] or "") > MOST_DIGITS:
            continue
        value = Fraction(digits)
        if match["below"]:
            below = Fraction(match["below"])
            if not below:
                continue
            value /= below
        found.append((-value if match["sign"] == "-" else value, bool(match["percent"]), match.span()))
    return found


def _close(a: Fraction, b: Fraction) -> bool:
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= RELATIVE * max(abs(a), abs(b))
