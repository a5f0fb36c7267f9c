"""Templates fill in columns and nothing else."""

from __future__ import annotations

import datetime
import decimal

import pytest

from graftline.stages.errors import InvalidField, RowFault
from graftline.stages.read.template import check_template, fill


def test_columns_of_any_name_and_type_are_filled_in() -> None:
    record = {"a b": "x", "n": 3, "f": 0.5, "yes": True, "list": [1, {"k": "ü"}], "day": datetime.date(2024, 2, 1)}
    assert fill("{a b}/{n}/{f}/{yes}/{list}/{day}", record) == 'x/3/0.5/true/[1, {"k": "ü"}]/2024-02-01'
    assert fill("{{a b}} {a b}", record) == "{a b} x"
    assert fill("{d}", {"d": decimal.Decimal("1.50")}) == "1.50"


def test_braces_in_values_are_text() -> None:
    assert fill("{a}{b}", {"a": "{b}", "b": "{a}"}) == "{b}{a}"


def test_nothing_is_looked_into() -> None:
    with pytest.raises(RowFault, match=r"no column 'text\.__class__' \(it has text\)"):
        fill("{text.__class__}", {"text": "x"})
    assert fill("{a.b[0]}", {"a.b[0]": "a column of that name"}) == "a column of that name"


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a!r}", "{a:>4}", "{a:{b}}"])
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(InvalidField, match=r"X\.prompt"):
        check_template(template, "X.prompt")


def test_too_few_and_unknown_columns_are_refused() -> None:
    with pytest.raises(InvalidField, match=r"'text' names no column"):
        check_template("text", "X.prompt", at_least=1)
    with pytest.raises(InvalidField, match=r"names 'label'. Use answer"):
        check_template("{label}", "X.instruction", known=("answer",))
    check_template("no column", "X.system")


def test_a_column_without_a_value_is_the_rows_fault() -> None:
    for value, reason in ((None, "no value in the column 'a'"), (b"x", "binary data in the column 'a'")):
        with pytest.raises(RowFault, match=reason):
            fill("{a}", {"a": value})
    with pytest.raises(RowFault, match=r"\(it has none\)"):
        fill("{a}", {})
