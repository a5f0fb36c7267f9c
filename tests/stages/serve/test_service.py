"""The service: what is refused before it starts, and one real one, from serve.yaml to the deleted application. Another,
routed one is in tests/acceptance."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from graftline.stages import Embedder, Llm, Stage, evaluate, read, serve
from graftline.stages.errors import (
    AdapterMismatch,
    EngineFailed,
    InvalidField,
    PortInUse,
    RequirementUnmet,
    WrongKind,
)
from graftline.stages.serve.deploy import start
from graftline.stages.stage import Resources
from graftline.stages.value_graph import inputs


class Tuned(Stage):
    makes = "adapter"
    seed: int = 0


class Reported(Stage):
    makes = "report"


def service(**fields):
    return serve.Service(**{"model": Llm("tiny"), "adapters": {"tickets": Tuned()}} | fields)


def routed(*targets, **fields):
    rows = {target: read.Jsonl(path=f"{target}.jsonl", prompt="{text}", answer="{queue}") for target in targets}
    return serve.NearestNeighbours(rows=rows, embedder=Embedder("tiny"), **fields)


class Told:
    """A context that opens one report and keeps what it was told."""

    def __init__(self, report=None):
        self.report, self.shown = report, []

    def opened(self, stage):
        return self.report

    def progress(self, done, total, **numbers):
        self.shown.append((done, total))


# --- built ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "where"),
    [
        ({"adapters": {"base": Tuned()}}, InvalidField, r"Service\.adapters\.base"),
        ({"adapters": {"../etc": Tuned()}}, InvalidField, r"Service\.adapters"),
        ({"adapters": {"Tickets": Tuned()}}, InvalidField, r"Service\.adapters\.Tickets"),
        ({"adapters": {"a" * 65: Tuned()}}, InvalidField, r"Service\.adapters"),
        ({"adapters": {"auto": Tuned()}}, InvalidField, r"Service\.adapters\.auto"),
        ({"router": routed("poems")}, InvalidField, r"Service\.router.*'poems', which is not served"),
        ({"models": {"tickets": Llm("tiny")}}, InvalidField, r"Service\.models\.tickets"),
        ({"models": {"other": Tuned()}}, WrongKind, r"Service\.models\.other"),
        ({"model": Tuned()}, WrongKind, r"Service\.model"),
        ({"probe": ()}, InvalidField, r"Service\.probe"),
        ({"port": 70000}, InvalidField, r"Service\.port"),
        ({"route": "a b"}, InvalidField, r"Service\.route"),
        ({"max_new_tokens": 0}, InvalidField, r"Service\.max_new_tokens"),
    ],
)
def test_what_is_refused_when_it_is_built(fields, kind, where):
    with pytest.raises(kind, match=where):
        service(**fields)


def test_its_name():
    assert service(label="Support tickets!").app_name == "support-tickets"
    assert service(route="/tickets").app_name == "tickets"
    assert service().app_name.startswith("graftline-")
    assert service().app_name != service(probe=("Hi",)).app_name


def test_it_asks_for_its_engines_beside_a_task_without_a_cpu():
    assert [each.cpus for each in service().footprint()] == [0.0, 1.0]
    assert [each.cpus for each in service(models={"full": Llm("tiny")}).footprint()] == [0.0, 1.0, 1.0]
    assert [each.cpus for each in service(resources=Resources(cpus=0.5)).footprint()] == [0.0, 0.5]
    assert [each.cpus for each in service(router=routed("tickets")).footprint()] == [0.0, 1.0, 0.0]


def test_a_router_brings_its_embedding_model():
    router = routed("base", "tickets")
    stage = service(router=router)
    assert dict(stage.expand()) == {"embedder": Embedder("tiny")}
    assert {router, Embedder("tiny"), Llm("tiny")} <= set(inputs(stage))


def test_a_required_report_is_an_input():
    report = Reported()
    requirement = evaluate.Requirement(figure=evaluate.Figure(report=report, name="exact_match/tickets"), least=0.8)
    assert report in inputs(service(requires=(requirement,)))


def test_where_and_how_is_no_part_of_the_fingerprint():
    changed = {"route": "x", "port": 5, "concurrency": 2, "queue": 3}
    assert all(serve.Service.is_execution(name) for name in changed)
    assert not any(serve.Service.is_execution(name) for name in ("probe", "system", "max_new_tokens", "requires"))


def test_a_port_that_is_taken_is_refused_before_anything_starts():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"Service\.port: port {port} is taken"):
            service(port=port).preflight(str)
    service(port=port).preflight(str)


# --- made -------------------------------------------------------------------------------------------------------


def test_an_unmet_requirement_stops_it_first(tmp_path, committed):
    report = committed("report", lambda folder: None, "", metrics={"exact_match/tickets": 0.5})
    (Path(report.path) / "report.json").write_text("{}")
    figure = evaluate.Figure(report=Reported(), name="exact_match/tickets")
    stage = service(requires=(evaluate.Requirement(figure=figure, least=0.8),))
    with pytest.raises(RequirementUnmet, match=r"0\.500.*at least 0\.8"):
        stage.make(Told(report), tmp_path, model=None, adapters={}, models={})
    assert list(tmp_path.glob("serve.yaml")) == []


def test_an_adapter_of_another_base_stops_it(tmp_path, base, committed):
    card = {"base": {"name": "other", "weights_digest": "0" * 64, "held": "none"}}
    foreign = committed("a", lambda folder: (folder / "graftline.json").write_text(json.dumps(card)), "adapter")
    with pytest.raises(AdapterMismatch, match="made for other"):
        service().make(Told(), tmp_path, model=base, adapters={"tickets": foreign}, models={})
    assert list(tmp_path.glob("serve.yaml")) == []


@pytest.mark.real
def test_a_service(ray_cluster, base, adapter, tmp_path):
    import openai
    from ray import serve as ray_serve

    from graftline.stages.serve.deploy import deployed, running

    probes = ("no signal at all", "why was I charged twice?")
    stage = service(
        model=Llm("tiny", dtype="float32"), probe=probes, system="Name the queue.", max_new_tokens=8, label="Tickets",
        concurrency=4, queue=4,
    )  # fmt: skip
    opened = {"model": base, "adapters": {"tickets": adapter("tickets")}, "models": {}}
    with deployed(stage.config(**opened), name="tickets") as url:
        port = running()[1]
        assert url == f"http://127.0.0.1:{port}/tickets"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["base", "tickets"]

        def ask(model, **fields):
            turns = [{"role": "system", "content": stage.system}, {"role": "user", "content": probes[0]}]
            given = {"messages": turns, "max_tokens": 8, "temperature": 0} | fields
            return client.chat.completions.create(model=model, **given)

        alone = {model: ask(model) for model in ("base", "tickets")}
        text = {model: said.choices[0].message.content for model, said in alone.items()}
        assert text["base"] != text["tickets"]
        for said in alone.values():
            assert said.usage.prompt_tokens > 8 >= said.usage.completion_tokens > 0
            assert said.choices[0].finish_reason == ("length" if said.usage.completion_tokens == 8 else "stop")

        # Clients side by side, for base and adapter, get what each got alone.
        models = ["base", "tickets"] * 4
        with ThreadPoolExecutor(4) as clients:
            said = [each.choices[0].message.content for each in clients.map(ask, models)]
        assert said == [text[model] for model in models]
        pieces = [chunk.choices[0].delta.content or "" for chunk in ask("tickets", stream=True)]
        assert "".join(pieces) == text["tickets"]
        assert len(pieces) > 3

        with pytest.raises(openai.NotFoundError):
            ask("nobody")
        with pytest.raises(openai.BadRequestError, match="tokens") as caught:
            ask("base", messages=[{"role": "user", "content": "signal " * 5000}])
        assert caught.value.code == "context_length_exceeded"
        with ThreadPoolExecutor(24) as clients:
            crowd = list(clients.map(lambda _: status(ask), range(24)))
        assert set(crowd) == {200, 429}, crowd

        # Serve has one port: another is refused.
        with pytest.raises(PortInUse, match=f"already listens on port {port}"):
            start(stage.config(**opened), name="second", port=1)

        # A service that is made now joins the running Serve, and deletes itself alone.
        told, out = Told(), tmp_path / "out"
        out.mkdir()
        metrics = stage.make(told, out, **opened)
        assert (metrics["http_ok"], metrics["probes"]) == (1, 4)
        assert told.shown[-1] == (4, 4)
        transcript = json.loads((out / "transcript.json").read_text(encoding="utf-8"))
        assert [(each["model"], each["request"]["messages"][-1]["content"], each["status"]) for each in transcript] == [
            (model, probe, 200) for model in ("base", "tickets") for probe in probes
        ]
        assert [transcript[0]["text"], transcript[2]["text"]] == [text["base"], text["tickets"]]
        assert set(ray_serve.status().applications) == {"tickets"}
        config = yaml.safe_load((out / "serve.yaml").read_text(encoding="utf-8"))
        assert config == stage.config(**opened)

        # One that cannot start says why, and leaves nothing.
        config["applications"][0]["args"]["base"]["digest"] = "0" * 64
        with pytest.raises(EngineFailed, match=r"^broken: .*could not start: EngineFailed: file:.* has the digest"):
            start(config, name="broken")
        assert set(ray_serve.status().applications) == {"tickets"}
        assert ask("base").choices[0].message.content == text["base"]
    assert running() is None  # it was started for this application alone

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(PortInUse, match="is taken"):
            start(config, name="second", port=listener.getsockname()[1])
    assert running() is None


def status(ask):
    import openai

    try:
        ask("base", max_tokens=64)
    except openai.RateLimitError as error:
        assert int(error.response.headers["retry-after"]) >= 1
        return error.status_code
    return 200
