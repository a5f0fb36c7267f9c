"""Rows that cannot be asked are missing, alone; what is no finite number is missing, too."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.errors import EngineFailed, PromptTooLong
from graftline.stages.score.asking import asked, finite, mean, said


@given(st.lists(st.booleans(), max_size=30))
def test_only_what_is_refused_is_missing(refused):
    def ask(items):
        if any(refused[item] for item in items):
            raise PromptTooLong("too long")
        return [10 * item for item in items]

    found = asked(ask, list(range(len(refused))))
    assert found == [None if each else 10 * item for item, each in enumerate(refused)]


def test_a_failure_of_the_engine_is_nobodys_row():
    def ask(items):
        raise EngineFailed("it died")

    with pytest.raises(EngineFailed):
        asked(ask, [1, 2])
    assert asked(ask, []) == []


def test_numbers_that_are_none():
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert mean([]) is mean(None) is mean([1.0, math.nan]) is mean([math.inf]) is None
    assert finite(2.0) == 2.0 and finite(math.inf) is finite(math.nan) is None


def test_messages_as_an_engine_takes_them():
    assert said(None) == said([]) == ()
    assert said([{"role": "user", "content": None, "more": 1}]) == ({"role": "user", "content": ""},)
