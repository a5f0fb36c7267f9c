"""Numbers and formulas as people write them, compared without running anything they wrote."""

from __future__ import annotations

import ast
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sympy

RELATIVE = Fraction(1, 10**6)
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
MOST_CHARACTERS, MOST_NODES, MOST_EXPONENT = 200, 120, 1000
DIGITS = 30
POINTS = ("0.7390851332", "1.3247179572", "2.6220575542", "0.1149420448")
"""Where two formulas are compared; letters get points shifted against each other."""


def fraction(text: str) -> tuple[Fraction, bool] | None:
    """The number that a text is (its currency, unit or final punctuation apart), and whether it is a percentage; None
    where it is none, or several."""
    plain = _plain(text)
    if mixed := re.fullmatch(r"(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)(?:\s+[^\W\d]+)?\.?", plain):
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
    """Whether two formulas are equal: their difference is zero to 30 digits at several points. None where one of them
    cannot be read (only arithmetic, letters and a few functions are, and nothing is ever executed), or where they are
    not numbers there."""
    import sympy

    try:
        left, right = read(one), read(other)
    except (Unreadable, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names = sorted({symbol.name for symbol in left.free_symbols | right.free_symbols})
    for shift in range(len(POINTS) - 1):
        at = {
            sympy.Symbol(name): sympy.Float(POINTS[(number + shift) % len(POINTS)], DIGITS) + number
            for number, name in enumerate(names)
        }
        try:
            a, b = (each.evalf(DIGITS, subs=at) for each in (left, right))
            if not (a.is_finite and b.is_finite):
                return None
            if abs(a - b) > 10 ** (6 - DIGITS) * max(1, abs(a), abs(b)):
                return False
        except (TypeError, ValueError, ArithmeticError, AttributeError):
            return None
        if not names:
            break
    return True


class Unreadable(Exception):
    """A text is no formula."""


def read(text: str) -> sympy.Expr:
    """The formula a text is, unevaluated.

    Raises:
        Unreadable: it has anything but numbers, letters, + - * / ^ and the functions named here; or it is too large.
    """
    plain = _formula(text)
    if not plain or len(plain) > MOST_CHARACTERS:
        raise Unreadable
    tree = ast.parse(plain, mode="eval")
    if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
        raise Unreadable
    return _built(tree.body)


def _built(node: ast.expr) -> Any:
    import sympy

    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        # From its text, so that 0.1 is a tenth.
        return sympy.Rational(repr(node.value)) if abs(node.value) < 1e15 else _refuse()
    if isinstance(node, ast.Name):
        if node.id in ("pi", "e"):
            return sympy.pi if node.id == "pi" else sympy.E
        return sympy.Symbol(node.id) if len(node.id) == 1 else _refuse()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _built(node.operand)
        return sympy.Mul(-1, inner, evaluate=False) if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
        known = {"sqrt": sympy.sqrt, "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "exp": sympy.exp,
                 "log": sympy.log, "ln": sympy.log, "abs": sympy.Abs}  # fmt: skip
        function = known.get(node.func.id) or _refuse()
        return function(_built(node.args[0]), evaluate=False)
    if isinstance(node, ast.BinOp):
        left, right = _built(node.left), _built(node.right)
        if isinstance(node.op, ast.Add):
            return sympy.Add(left, right, evaluate=False)
        if isinstance(node.op, ast.Sub):
            return sympy.Add(left, sympy.Mul(-1, right, evaluate=False), evaluate=False)
        if isinstance(node.op, ast.Mult):
            return sympy.Mul(left, right, evaluate=False)
        if isinstance(node.op, ast.Div):
            return sympy.Mul(left, sympy.Pow(right, -1, evaluate=False), evaluate=False)
        if isinstance(node.op, ast.Pow):
            # A tower of powers is the one thing here that could take for ever.
            if any(isinstance(each, ast.Pow) for each in ast.walk(node.right)) or _large(right):
                _refuse()
            return sympy.Pow(left, right, evaluate=False)
    return _refuse()


def _large(exponent: Any) -> bool:
    if exponent.free_symbols:
        return False
    value = exponent.evalf(10)
    return not value.is_number or not value.is_finite or abs(value) > MOST_EXPONENT


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
        value = Fraction(digits) if len(digits) <= 100 else None
        if value is None:
            continue
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
