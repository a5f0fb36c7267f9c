"""Numbers, durations and foreign text as people read them."""

import pytest

from graftline.pipelines.words import duration, error_text, number, shortened, shown, visible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (3, "3"), (3.0, "3"), (-12, "-12"), (92200, "92\u2009200"), (1234.5, "1\u2009234"),
        (0.8533, "0.853"), (0.00001234, "1.2e-05"), (float("nan"), "nan"), (float("-inf"), "-inf"), (1e20, "1.0e+20"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0, "0 ms"), (0.04, "40 ms"), (0.0999, "0.1 s"), 
     (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (3599.9, "1 h 00 min"), (3725, "1 h 02 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_errors_say_what_where_and_what_to_do():
    error = {"type": "StoreFailed", "what": "the disk is full", "where": "Train", "do": "make room"}
    assert error_text(error) == "Train: the disk is full. Make room"
    assert error_text("plain") == "plain" and error_text({"what": "stopped", "where": "", "do": ""}) == "stopped"


def test_values_of_tables():
    assert [shown(True), shown(None), shown(0.5), shown("a <b>"), shown({"x": "ü"}), shown(b"\0" * 1152)] == [
        "yes", "–", "0.5", "a <b>", '{"x": "ü"}', f"{number(1152)} bytes",
    ]  # fmt: skip
    assert shortened("abcdef", 4) == "abc…" and shortened("abcd", 4) == "abcd"


def test_a_row_cannot_steer_the_terminal():
    hostile = "red \x1b[31mtext\x07 back\rwards \u202etxt.exe \x9b2J \ud800"
    assert visible(hostile) == "red \\x1b[31mtext\\x07 back\\rwards \\u202etxt.exe \\x9b2J \\ud800"
    assert visible("tabs\tand\nlines, ümläüte, 中文, 👩\u200d🔧") == "tabs\tand\nlines, ümläüte, 中文, 👩\u200d🔧"
