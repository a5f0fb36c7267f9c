"""Every engine keeps to the one protocol, and a request's defaults are greedy."""

import inspect

import pytest

from graftline.stages.lm.engine import Engine, Request, Sampling
from graftline.stages.lm.local import LocalEngine
from graftline.stages.lm.plain import PlainEngine
from graftline.stages.lm.scripted import ScriptedEngine

CALLS = [name for name, each in vars(Engine).items() if inspect.isfunction(each) and not name.startswith("_")]


@pytest.mark.parametrize("kind", [LocalEngine, PlainEngine, ScriptedEngine])
def test_an_engine_takes_what_the_protocol_says(kind):
    assert len(CALLS) == 10
    for name in CALLS:
        wanted, given = (inspect.signature(getattr(each, name)).parameters for each in (Engine, kind))
        assert [(each.name, each.default) for each in given.values()] == [
            (each.name, each.default) for each in wanted.values()
        ], name


def test_a_request_is_greedy_and_of_the_base_unless_it_says_otherwise():
    request = Request("a", ({"role": "user", "content": "hello"},))
    assert request.sampling == Sampling(temperature=0.0, top_p=1.0, stop=(), seed=0)
    assert request.adapter is None and request.prefix == ""
