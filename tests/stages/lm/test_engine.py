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
    assert request.sampling.presence == 0
    assert request.adapter is None and request.prefix == ""


def test_without_a_penalty_a_request_is_what_it_was_before_there_were_any():
    """Digests of what is asked name answers that are kept."""
    request = Request("a", ({"role": "user", "content": "hello"},), prefix="Well,")
    sampling = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 64, "stop": (), "seed": 0}
    assert request.asked() == {
        "messages": [{"role": "user", "content": "hello"}], "sampling": sampling, "adapter": None, "prefix": "Well,",
    }  # fmt: skip
    assert Sampling(presence=-0.5).plain() == {**sampling, "presence": -0.5}
