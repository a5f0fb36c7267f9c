"""`auto` at the gateway: routed, told in a header, and answered by the base where the router fails."""

import asyncio
import json

import pytest
from fastapi.testclient import TestClient

from graftline.stages.lm import tiny_embedder
from graftline.stages.serve.api import create_api
from graftline.stages.serve.chat import Served
from graftline.stages.serve.routing import RouterReplica

MODELS = [
    Served("base", "engine", None, "tiny", "b" * 64),
    Served("tickets", "engine", "tickets", "tickets", "a" * 64, "base"),
    Served("full", "engine-full", None, "full", "f" * 64),
    Served("auto", "router", None, "NearestNeighbours", "r" * 64),
]
ASK = {"model": "auto", "messages": [{"role": "user", "content": "no signal"}]}
ANSWER = {"text": "mobile data", "finish": "stop", "tokens_in": 5, "tokens_out": 2}


class Chooser:
    """A handle on a router that chooses `target`, or raises it."""

    def __init__(self, target):
        self.target, self.asked = target, []
        self.choose = self

    async def remote(self, text, mu):
        self.asked.append((text, mu))
        if isinstance(self.target, Exception):
            raise self.target
        return {"target": self.target, "quality": {"base": 0.25, self.target: 0.75}, "seconds": 0.001}


@pytest.fixture
def service(handle):
    def make(target="tickets"):
        engines = {"engine": handle(lambda call: ANSWER), "engine-full": handle(lambda call: ANSWER)}
        chooser = Chooser(target)
        return TestClient(create_api(MODELS, engines, chooser), raise_server_exceptions=False), engines, chooser

    return make


@pytest.mark.parametrize(
    ("target", "engine", "adapter"), [("tickets", "engine", "tickets"), ("full", "engine-full", None)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_auto_is_answered_by_the_one_chosen(service, target, engine, adapter, stream):
    client, engines, chooser = service(target)
    reply = client.post("/v1/chat/completions", json=ASK | {"stream": stream, "mu": 0.25})
    assert reply.status_code == 200
    assert reply.headers["x-route"] == target
    assert reply.headers["x-route-quality"] == f"base=0.250, {target}=0.750"
    assert [call["adapter"] for call in engines[engine].calls] == [adapter]
    said = reply.json() if not stream else json.loads(reply.text.split("\n\n")[0].removeprefix("data: "))
    assert said["model"] == target
    assert chooser.asked == [("no signal", 0.25)]


def test_completions_are_routed_too(service):
    client, engines, chooser = service()
    reply = client.post("/v1/completions", json={"model": "auto", "prompt": ["no", "signal"]})
    assert reply.headers["x-route"] == "tickets"
    assert len(engines["engine"].calls) == 2
    assert chooser.asked == [("no\nsignal", None)]


def test_where_the_router_fails_the_base_answers_and_says_so(service):
    client, engines, _ = service(RuntimeError("died at /secret/path"))
    reply = client.post("/v1/chat/completions", json=ASK)
    assert (reply.status_code, reply.headers["x-route"]) == (200, "base; fallback")
    assert [call["adapter"] for call in engines["engine"].calls] == [None]
    assert "secret" not in str(reply.headers) + reply.text


def test_who_is_named_is_not_routed(service):
    client, engines, chooser = service("full")
    for asked in ({"model": "tickets"}, {"adapter": "tickets"}, {"model": "base", "adapter": "tickets"}):
        reply = client.post("/v1/chat/completions", json=ASK | asked)
        assert reply.status_code == 200
        assert "x-route" not in reply.headers
    assert [call["adapter"] for call in engines["engine"].calls] == ["tickets"] * 3
    assert chooser.asked == []


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"model": "full", "adapter": "tickets"}, 400, "adapter_mismatch"),
        ({"model": "base", "adapter": "full"}, 400, "adapter_mismatch"),
        ({"model": "base", "adapter": "base"}, 400, "adapter_mismatch"),
        ({"model": "base", "adapter": "nobody"}, 404, "model_not_found"),
        ({"model": "nobody", "adapter": "tickets"}, 404, "model_not_found"),
        ({"mu": 2}, 400, None),
    ],
)
def test_an_adapter_and_a_model_that_do_not_belong_together(service, asked, status, code):
    client, engines, chooser = service()
    for path, body in (("chat/completions", {}), ("completions", {"prompt": "no signal"})):
        reply = client.post(f"/v1/{path}", json=ASK | body | asked)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert not chooser.asked and not any(engine.calls for engine in engines.values())


def test_without_a_router_there_is_no_auto(handle):
    client = TestClient(create_api(MODELS[:3], {"engine": handle(lambda call: ANSWER)}))
    assert client.post("/v1/chat/completions", json=ASK).status_code == 404


def test_the_replica_opens_a_fitted_router_and_chooses(committed):
    import numpy as np
    from safetensors.numpy import save_file

    from graftline.stages.lm.embedding import open_embedder

    base = committed("model", tiny_embedder.write)
    embed = open_embedder(base.directory("model")).embed
    texts = ["the invoice was sent twice", "hello there friend"]

    def write(folder):
        vectors = embed(texts)
        centre = vectors.mean(0)
        moved = vectors - centre
        arrays = {"vectors": moved / np.linalg.norm(moved, axis=1, keepdims=True), "labels": np.array([1, 0])}
        save_file({**arrays, "centre": centre}, folder / "router.safetensors")
        about = {
            "module": "graftline.stages.serve.route.nearest_neighbours", "class": "NearestNeighbours",
            "targets": ["base", "billing"], "costs": [0.0, 0.5], "mu": 0.0,
            "settings": {"targets": 2, "least": None, "k": 1},
        }  # fmt: skip
        (folder / "router.json").write_text(json.dumps(about))

    made = committed("router", write, "")
    embedder = {"uri": base.uri, "digest": base.digest}
    replica = RouterReplica({"uri": made.uri, "digest": made.digest, "embedder": embedder})
    found = [asyncio.run(replica.choose(text, None)) for text in texts]
    assert [each["target"] for each in found] == ["billing", "base"]
    assert found[0]["quality"] == {"base": 0.0, "billing": 1.0}
    assert asyncio.run(replica.choose(texts[0], 1.0))["target"] == "base"  # the cheapest


def test_a_header_tells_the_costs_where_there_are_any(service):
    client, _, chooser = service()

    async def choose(text, mu):
        return {"target": "tickets", "quality": {"tickets": 1.0}, "cost": costs, "seconds": 0.001}

    chooser.remote = choose
    costs = {"tickets": 0.0625, "base": 0.0}
    headers = client.post("/v1/chat/completions", json=ASK).headers
    assert headers["x-route-cost"] == "base=0.000, tickets=0.062"
    costs = {"tickets": 0.0, "base": 0.0}
    assert "x-route-cost" not in client.post("/v1/chat/completions", json=ASK).headers


def test_the_replica_counts_the_cost_of_the_request_it_sees(committed):
    import numpy as np
    from safetensors.numpy import save_file

    from graftline.stages.lm.embedding import open_embedder

    base = committed("model", tiny_embedder.write)
    embed = open_embedder(base.directory("model")).embed

    def write(folder):
        vectors = embed(["the invoice was sent twice", "hello there friend"])
        arrays = {
            "vectors": vectors, "centre": np.zeros(vectors.shape[1], np.float32),
            "quality": np.array([[1.0, 1.0], [0.0, 1.0]]), "tokens": np.array([[100.0, 100.0], [10.0, 10.0]]),
        }  # fmt: skip
        save_file(arrays, folder / "router.safetensors")
        about = {
            "module": "graftline.stages.serve.route.nearest_neighbours", "class": "NearestNeighbours",
            "targets": ["base", "large"], "costs": [0.0, 0.0], "mu": 0.1,
            "settings": {"targets": 2, "least": None, "k": 1, "k_quality": [1, 1], "k_tokens": [1, 1]},
            "prices": {"input": [1.0, 4.0], "output": [1.0, 4.0], "dearest": 0.0008},
        }  # fmt: skip
        (folder / "router.json").write_text(json.dumps(about))

    made = committed("router", write, "")
    embedder = {"uri": base.uri, "digest": base.digest}
    replica = RouterReplica({"uri": made.uri, "digest": made.digest, "embedder": embedder})
    one, other = (asyncio.run(replica.choose(text, None)) for text in ("the invoice sent twice", "hello friend"))
    assert (one["target"], other["target"]) == ("base", "large")
    assert one["cost"] == pytest.approx({"base": 106 / 800, "large": 424 / 800})  # 22 bytes: 6 tokens
    assert other["cost"] == pytest.approx({"base": 14 / 800, "large": 56 / 800})
    assert asyncio.run(replica.choose("hello friend", 1.0))["target"] == "base"
