"""Means of what was measured: rows without a number are missing, on either side of a gain."""

from graftline.stages.evaluate.measured import gain, mean
from graftline.stages.evaluate.metric import Prediction


def numbers(*values):
    return [Prediction("", value=value) for value in values]


def test_missing_rows_are_left_out_and_counted():
    found = mean(numbers(1.0, None, 3.0), [0, 1, 2], 0)
    assert (found["value"], found["n"], found["missing"]) == (2.0, 2, 1)
    assert "missing" not in mean(numbers(1.0, 3.0), [0, 1], 0)


def test_a_gain_is_over_rows_measured_both_times():
    found = gain(numbers(1.0, None, 3.0, 4.0), numbers(2.0, 9.0, None, 7.0), [0, 1, 2, 3], 0)
    assert (found["value"], found["n"]) == (2.0, 2)
