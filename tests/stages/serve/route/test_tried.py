"""The table of what was tried: one line a prompt, whatever rows told of it and in whatever order."""

import numpy as np
import pyarrow as pa
import pytest

from graftline.stages import serve
from graftline.stages.errors import InvalidField, NothingKept
from graftline.stages.serve.route.tried import dearest_of

PRICES = {"large": serve.Price(input=10.0, output=40.0), "small": serve.Price(input=1.0, output=2.0)}
TARGETS = ("large", "small")


class Rows:
    def __init__(self, *rows):
        self.made = list(rows)

    def rows(self, columns):
        return pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in self.made])


def row(text, verified, answer=None, **more):
    turns = [{"role": "user", "content": text}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    vector = [float(len(text)), 1.0]
    return {"id": text, "group": None, "messages": turns, "embedding": vector, "verified": verified, **more}


def test_a_line_a_prompt_and_a_column_a_target():
    rows = {
        "large": Rows(row("b", 1, "12345678"), row("a", 1, "x"), row("c", None, "y")),
        "small": Rows(row("a", 0, "x" * 40), row("a", 1, "x" * 80), row("d", 1)),
    }
    tried = serve.Tried(quality="verified", prices=PRICES)
    found = tried.read(rows, TARGETS)
    nan = np.nan
    np.testing.assert_array_equal(found.quality, [[1, 0.5], [1, nan], [nan, 1]])  # prompts a, b, d
    np.testing.assert_array_equal(found.tokens_out, [[1, 16], [3, nan], [nan, nan]])
    np.testing.assert_array_equal(found.tokens_in, [1, 1, 1])
    assert found.vectors.tolist() == [[1, 1]] * 3
    scale, cost = tried.paid(found, TARGETS)
    assert scale == {"input": [10.0, 1.0], "output": [40.0, 2.0], "dearest": 130e-6}
    np.testing.assert_allclose(cost, np.array([[50, 33], [130, nan], [nan, nan]]) / 130)


def test_the_order_of_rows_does_not_matter():
    rows = [row(text, place % 2, "x" * place) for place, text in enumerate("hgfedcba")]
    one, other = ({"large": Rows(*each), "small": Rows(*each)} for each in (rows, rows[::-1]))
    found = [serve.Tried(quality="verified").read(each, TARGETS) for each in (one, other)]
    for name in ("vectors", "groups", "quality", "tokens_in", "tokens_out"):
        np.testing.assert_array_equal(*(getattr(each, name) for each in found))


def test_a_prompt_that_two_groups_share_joins_them():
    """Else its neighbours of one group would be asked about by the other."""
    rows = {
        "large": Rows(row("a", 1, group="one"), row("b", 1, group="one"), row("c", 0, group="three")),
        "small": Rows(row("a", 1, group="two"), row("d", 1, group="two")),
    }
    groups = serve.Tried(quality="verified").read(rows, TARGETS).groups.tolist()
    assert groups[0] == groups[1] == groups[3] != groups[2]


@pytest.mark.parametrize(
    ("values", "quality"),
    [
        (("true", "False", " 0.25 ", ""), [1, 0, 0.25]),  # as readers keep columns
        ((True, False, True, None), [1, 0, 1]),
        ((1.0, 0.5, 0.0, float("nan")), [1, 0.5, 0]),
    ],
)
def test_quality_as_files_hold_it(values, quality):
    rows = {"large": Rows(*(row(text, value) for text, value in zip("abcd", values, strict=True)))}
    found = serve.Tried(quality="verified").read(rows, ("large",))
    assert found.quality[:, 0].tolist() == quality


def test_tokens_from_a_column():
    tried = serve.Tried(quality="verified", prices=PRICES, tokens_out="n", dearest=0.5)
    rows = {name: Rows(row("a", 1, "long", n=count)) for name, count in (("large", "1000"), ("small", "2e6"))}
    found = tried.read(rows, TARGETS)
    assert found.tokens_out.tolist() == [[1000, 2e6]]
    scale, cost = tried.paid(found, TARGETS)
    assert scale["dearest"] == 0.5
    np.testing.assert_allclose(cost, [[(10 + 40_000) / 1e6 / 0.5, (1 + 4e6) / 1e6 / 0.5]])


@pytest.mark.parametrize(
    ("value", "fields", "kind", "where"),
    [
        (4, {}, InvalidField, r"row a has 4 in 'verified'.*from 0 to 1"),
        ("good", {}, InvalidField, "row a has 'good' in 'verified'"),
        (-0.5, {}, InvalidField, "row a has -0.5"),
        (None, {}, NothingKept, "no row of large says how good"),
        (1, {"prices": {"large": PRICES["large"]}}, NothingKept, "no row of large has an answer"),
        (1, {"prices": {"large": PRICES["large"]}, "tokens_out": "n"}, InvalidField, "row a has -3 in 'n'"),
    ],
)
def test_what_cannot_be_read_says_so(value, fields, kind, where):
    with pytest.raises(kind, match=where):
        serve.Tried(quality="verified", **fields).read({"large": Rows(row("a", value, n=-3))}, ("large",))


def test_what_is_refused_when_it_is_built():
    for field in ({"dearest": 1.0}, {"tokens_out": "n"}):
        with pytest.raises(InvalidField, match=rf"Tried\.{next(iter(field))}: nothing is priced"):
            serve.Tried(quality="verified", **field)
    with pytest.raises(InvalidField, match=r"Tried\.prices"):
        serve.Tried(quality="verified", prices={})


def test_the_dearest_is_of_targets_worth_their_price():
    draw = np.random.default_rng(0)
    quality, cost = draw.random((50, 3)), draw.random((50, 3)) * [0.1, 0.4, 1.0]
    quality += [0.0, 0.2, 0.4]
    assert dearest_of(quality, cost) == cost.max()
    worse = np.hstack([quality, quality[:, :1] - 0.1]), np.hstack([cost, cost[:, :1] + 9])
    assert dearest_of(*worse) == cost.max()
    same = np.hstack([quality, quality[:, 2:]]), np.hstack([cost, cost[:, 2:]])
    assert dearest_of(*same) == cost.max()  # equals do not dominate each other
    # Compared on the prompts that both were tried on; where there are none, nothing is said.
    apart = np.full((2, 2), np.nan), np.full((2, 2), np.nan)
    for place in range(2):
        apart[0][place, place], apart[1][place, place] = 1 - place, 1 + place
    assert dearest_of(*apart) == 2
