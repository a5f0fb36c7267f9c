"""The service: what is refused before it starts, and one real one, from serve.yaml to the deleted application."""

import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from graftline.stages import Embedder, Llm, Stage, evaluate, merge, read, serve
from graftline.stages.errors import (
    AdapterMismatch,
    EngineFailed,
    InvalidField,
    PortInUse,
    RequirementUnmet,
    WrongKind,
)
from graftline.stages.lm import tiny, tiny_embedder
from graftline.stages.lm.load import load_tokenizer, model_digest
from graftline.stages.serve.deploy import start
from graftline.stages.stage import Resources
from graftline.stages.value_graph import inputs


class Tuned(Stage):
    makes = "adapter"
    seed: int = 0


class OnTiny(Stage):
    makes = "adapter"
    model: Stage = Llm("tiny")


class Full(Stage):
    makes = "model"
    model: Stage


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


@pytest.fixture
def base(committed):
    return committed("model", tiny.write, kind="model")


@pytest.fixture
def adapter(committed, base):
    """A PEFT adapter of the tiny model that changes its answers."""

    def make(name, weights_digest=None, seed=1):
        import torch
        from peft import LoraConfig, get_peft_model

        from graftline.stages.lm.load import load_model

        def write(folder):
            torch.manual_seed(seed)
            model = get_peft_model(
                load_model(base.directory("model"), "float32"),
                LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
            )
            model.save_pretrained(folder)
            digest = weights_digest or model_digest(base.directory("model"))
            card = {"base": {"name": "tiny", "weights_digest": digest, "held": "none"}}
            (folder / "graftline.json").write_text(json.dumps(card))

        return committed(name, write, "adapter", kind="adapter", fingerprint="f" * 64)

    return make


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
def test_a_routed_service_of_base_adapters_and_a_merged_model(ray_cluster, base, adapter, tmp_path, committed):
    """One service: two adapters and a merged model over one base, `auto` over all of them, OpenAI's client, both of
    its endpoints, whole and streamed."""
    import openai

    from graftline.stages.serve.deploy import deployed
    from graftline.stages.serve.route.route import Fitted

    prompts = {
        "tickets": ("the invoice was sent twice", "a payment does not work", "the invoice is wrong"),
        "merged": ("hello there friend", "good morning to you", "hi how are you"),
    }
    one, other = adapter("tickets"), adapter("poems", seed=2)
    merged = merge.IntoBase(model=Llm("tiny"), adapter=OnTiny())
    folder = tmp_path / "merged"
    folder.mkdir()
    merged.make(Opened({Llm("tiny"): base}), folder, model=base, adapter=one)
    whole = committed(
        "merged", lambda place: shutil.copytree(folder / "model", place, dirs_exist_ok=True), kind="model"
    )
    router = serve.NearestNeighbours(
        rows={id: read.Jsonl(path=f"{id}.jsonl", prompt="{text}", answer="{queue}") for id in prompts},
        embedder=Embedder("tiny"), k=1,
    )  # fmt: skip
    embedder = committed("embedder", tiny_embedder.write, kind="embedder")
    routed_by = committed("router", lambda place: fit(router, prompts, place), "", kind="report")
    wanted = Fitted(Path(routed_by.path)).choose(tiny_embedder.HashedWords().embed(["the invoice"])[0])

    stage = service(
        model=Llm("tiny", dtype="float32"), adapters={"tickets": Tuned(), "poems": Tuned(seed=1)},
        models={"merged": merged}, router=router, resources=Resources(cpus=0.5),
    )  # fmt: skip
    opened = {
        "model": base, "adapters": {"tickets": one, "poems": other}, "models": {"merged": whole}, "router": routed_by,
        "embedder": embedder,
    }  # fmt: skip
    with deployed(stage.config(**opened), name="routed") as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["base", "poems", "tickets", "merged", "auto"]

        def chat(model, text="the invoice", **fields):
            turns = [{"role": "user", "content": text}]
            given = {"messages": turns, "max_tokens": 8, "temperature": 0} | fields
            return client.chat.completions.create(model=model, **given)

        said = {id: chat(id).choices[0].message.content for id in ("base", "poems", "tickets", "merged")}
        assert said["merged"] == said["tickets"]  # a model of its own, and the same function
        assert len({said["base"], said["poems"], said["tickets"]}) == 3

        for text, targets in (("the invoice was sent twice", "tickets"), ("hello there friend", "merged")):
            reply = client.chat.completions.with_raw_response.create(
                model="auto", messages=[{"role": "user", "content": text}], max_tokens=8, temperature=0
            )
            assert reply.headers["x-route"] == reply.parse().model == targets
            assert reply.parse().choices[0].message.content == chat(targets, text).choices[0].message.content
        pieces = list(chat("auto", stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == said[wanted.target]
        assert {piece.model for piece in pieces} == {wanted.target}

        plain = {"prompt": "the invoice was", "max_tokens": 8, "temperature": 0}
        text = client.completions.create(model="tickets", **plain)
        assert text.usage.prompt_tokens == len(load_tokenizer(base.directory("model"))("the invoice was")["input_ids"])
        assert text.choices[0].text != client.completions.create(model="base", **plain).choices[0].text
        pieces = client.completions.create(model="tickets", **plain, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == text.choices[0].text
        counted = {"stream": True, "stream_options": {"include_usage": True}}
        several = plain | {"prompt": ["the invoice was", "hello there"], "n": 2, "temperature": 1, "seed": 3}
        whole = client.completions.create(model="tickets", **several)
        assert len({choice.text for choice in whole.choices}) == 4
        *pieces, last = client.completions.create(model="tickets", **several, **counted)
        texts = dict.fromkeys(range(4), "")
        for piece in pieces:
            texts[piece.choices[0].index] += piece.choices[0].text
        assert texts == {choice.index: choice.text for choice in whole.choices} and last.usage == whole.usage
        assert (
            chat("tickets", n=2, temperature=1, seed=3).usage
            == list(chat("tickets", n=2, temperature=1, seed=3, **counted))[-1].usage
        )
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="base", **plain | {"prompt": "signal " * 5000})
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nobody", **plain)
        with pytest.raises(openai.BadRequestError, match="it is no adapter of 'merged'"):
            chat("merged", extra_body={"adapter": "tickets"})

        # Of another base: a serve.yaml changed by hand does not get it served.
        config = stage.config(**opened)
        foreign = adapter("foreign", weights_digest="0" * 64)
        args = config["applications"][0]["args"]
        args["adapters"]["poems"] |= {"uri": foreign.uri, "digest": foreign.digest}
        with pytest.raises(EngineFailed, match=r"AdapterMismatch: .*foreign.*was made for tiny with the weights 0000"):
            start(
                config | {"applications": [{**config["applications"][0], "args": {**args, "models": {}}}]},
                name="by-hand",
            )
        assert chat("tickets").choices[0].message.content == said["tickets"]


class Opened(Told):
    """A context that opens artefacts by stage."""

    resources = Resources(cpus=1.0, threads=1)

    def __init__(self, made):
        super().__init__()
        self.made = made

    def opened(self, stage):
        return self.made[stage]


def fit(router, prompts, place):
    """Write a fitted router's files."""
    import numpy as np
    from safetensors.numpy import save_file

    embed = tiny_embedder.HashedWords().embed
    texts = [text for target in router.targets for text in prompts[target]]
    labels = [at for at, target in enumerate(router.targets) for _ in prompts[target]]
    arrays, settings = router.fitted(embed(texts), np.asarray(labels), np.arange(len(labels)))
    save_file(arrays, place / "router.safetensors")
    about = {
        "module": type(router).__module__, "class": type(router).__name__, "targets": list(router.targets),
        "costs": [0.0, 0.0], "mu": 0.0, "settings": settings,
    }  # fmt: skip
    (place / "router.json").write_text(json.dumps(about))


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
