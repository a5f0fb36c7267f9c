"""A server's model as a stage: what is semantic, what is refused, and what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graftline.stages import Endpoint, Llm
from graftline.stages.errors import EndpointRefused, InvalidField, WrongKind
from graftline.stages.lm.open import open_engine
from graftline.stages.lm.reference import base_of
from graftline.stages.score import Difficulty, LlmJudge, Perplexity
from graftline.stages.serve import Service
from graftline.stages.train import Train

from ...fake_openai import FakeOpenAI
from ..conftest import Length, Lines, fingerprint

URL = "http://localhost:1/v1"


def test_the_name_is_semantic_the_place_is_not() -> None:
    one = Endpoint("m", url=URL)
    assert one.kind == "model" and one.name == "m" and base_of(one) == one
    elsewhere = Endpoint("m", url="https://other/v1", key_env="KEY", concurrency=2, price_in=1.0)
    assert fingerprint(one) == fingerprint(elsewhere) != fingerprint(Endpoint("n", url=URL))
    assert fingerprint(one) != fingerprint(Endpoint("m", url=URL, prefix="continue"))


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"url": "host/v1"}, "url"), ({"url": "ftp://host"}, "url"), ({"url": "http://me:key@host/v1"}, "url"),
        ({"url": "http://[oops"}, "url"), ({"url": "http://host/v1?key=1"}, "url"), ({}, "url"),
        ({"url": URL, "concurrency": 0}, "concurrency"), ({"url": URL, "patience": 0.0}, "patience"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidField, match=rf"Endpoint\.{where}") as error:
        Endpoint("m", **fields)
    assert "me:key" not in str(error.value) or where != "url"
    with pytest.raises(InvalidField, match=r"Endpoint\.model"):
        Endpoint(" ", url=URL)


def test_what_needs_weights_refuses_it() -> None:
    endpoint, rows = Endpoint("m", url=URL), Length(rows=Lines())
    for build in (
        lambda: Train(model=endpoint, rows=rows),
        lambda: Service(model=endpoint),
        lambda: Service(model=Llm("tiny"), models={"other": endpoint}),
        lambda: Perplexity(model=endpoint, rows=rows),
        lambda: Difficulty(model=endpoint, rows=rows),
        lambda: LlmJudge(judge=endpoint, rows=rows, read="expected"),
    ):
        with pytest.raises(WrongKind, match="is a server's model"):
            build()
    LlmJudge(judge=endpoint, rows=rows)


def test_it_makes_a_note_of_its_name(tmp_path: Path) -> None:
    assert Endpoint("m", url=URL).make(None, tmp_path) == {}  # type: ignore[arg-type]
    assert json.loads((tmp_path / "endpoint.json").read_text()) == {"model": "m"}


def test_a_plan_finds_a_wrong_key_and_an_unknown_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(model: str = "fake", **fields: Any) -> None:
        Endpoint(model, url=fake.url, **fields).preflight(lambda path: path)

    monkeypatch.setenv("FAKE_KEY", "wrong-key")
    with FakeOpenAI(key="right-key") as fake:
        with pytest.raises(EndpointRefused, match="refuses the key in FAKE_KEY") as error:
            plan(key_env="FAKE_KEY")
        assert "wrong-key" not in str(error.value)
        with pytest.raises(EndpointRefused, match="a request without a key"):
            plan()
        monkeypatch.setenv("FAKE_KEY", "right-key")
        plan(key_env="FAKE_KEY")
        with pytest.raises(EndpointRefused, match="no model 'unknown'; it has fake"):
            plan("unknown", key_env="FAKE_KEY")
    monkeypatch.delenv("FAKE_KEY")
    with pytest.raises(EndpointRefused, match="FAKE_KEY is not set"):
        plan(key_env="FAKE_KEY")
    plan()  # a server that is down says nothing about the request


def test_its_engine_is_opened_like_any_other() -> None:
    with FakeOpenAI() as fake, open_engine(Endpoint("fake", url=fake.url), None) as engine:
        assert engine.model == "fake" and not engine.reproducible and engine.why
        with open_engine(Endpoint("fake", url="http://elsewhere/v1"), None) as other:
            assert engine.digest == other.digest
