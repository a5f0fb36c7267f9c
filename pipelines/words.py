"""Numbers, durations and foreign text as people read them: what the display, the tables and the report share."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

THIN_SPACE = "\u2009"


def number(value: float) -> str:
    """A number, whole or in three significant digits, thousands apart: 0.853, 92 200, 1.2e-05."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size < 1e15 and (value == int(value) or size >= 1000):
        return f"{value:,.0f}".replace(",", THIN_SPACE)
    return f"{value:.3g}" if 1e-4 <= size < 1e15 else f"{value:.1e}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 17 ms, 0.4 s, 48 s, 3 min 05 s, 1 h 02 min."""
    if seconds is None:
        return "–"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def spaced(name: str) -> str:
    """`exact_match` as words."""
    return name.replace("_", " ")


def shown(value: Any) -> str:
    """A value of a table: numbers short, texts as they are, of bytes how many, the rest as JSON."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, bytes):
        return f"{number(len(value))} bytes"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def error_text(error: Any) -> str:
    """A record's error, be it a text or what, where and what to do."""
    if isinstance(error, Mapping):
        where = f"{error['where']}: " if error.get("where") else ""
        what = str(error.get("what") or error.get("message") or "failed")
        return f"{where}{what}" + (f". {error['do'][0].upper()}{error['do'][1:]}" if error.get("do") else "")
    return str(error)


def shortened(text: str, most: int) -> str:
    """The text, cut to `most` characters with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def visible(text: str) -> str:
    """Text from rows and servers, safe on a terminal: what would move the cursor, colour the screen or turn the
    writing direction is spelled out; newlines, tabs and joiners stay."""
    return "".join(
        character if character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else character.encode("unicode_escape").decode()
        for character in text
    )  # fmt: skip
