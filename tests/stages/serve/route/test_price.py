"""Prices are of a million tokens, and tokens are counted without a tokenizer."""

import numpy as np
import pytest

from graftline.stages import serve
from graftline.stages.errors import InvalidField
from graftline.stages.serve.route.price import counted, money


def test_what_answers_cost():
    price_in, price_out = np.array([1.0, 10.0]), np.array([2.0, 40.0])
    tokens_in, tokens_out = np.array([100.0, 0.0]), np.array([[50.0, 10.0], [1e6, np.nan]])
    found = money(price_in, price_out, tokens_in, tokens_out)
    np.testing.assert_allclose(found, [[200e-6, 1400e-6], [2.0, np.nan]])


def test_about_four_bytes_a_token():
    assert [counted(text) for text in ("", "abc", "abcd", "é" * 4, "\ud800")] == [1, 1, 2, 3, 1]


def test_a_price_is_not_negative():
    with pytest.raises(InvalidField, match=r"Price\.output"):
        serve.Price(input=1.0, output=-1.0)
