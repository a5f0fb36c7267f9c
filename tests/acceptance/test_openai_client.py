"""OpenAI's own client against a service: base, adapters, a merged model and `auto`, both endpoints, streaming too."""

import json
import shutil
from pathlib import Path

import pytest

from graftline.stages import Embedder, Llm, Stage, merge, read, serve
from graftline.stages.errors import EngineFailed
from graftline.stages.lm import tiny_embedder
from graftline.stages.lm.load import load_tokenizer
from graftline.stages.serve.deploy import start
from graftline.stages.stage import Resources


class Tuned(Stage):
    makes = "adapter"
    seed: int = 0


class OnTiny(Stage):
    makes = "adapter"
    model: Stage = Llm("tiny")


@pytest.mark.real
def test_a_routed_service_of_base_adapters_and_a_merged_model(ray_cluster, base, adapter, tmp_path, committed):
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

    stage = serve.Service(
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


class Opened:
    """A context that opens artefacts by stage."""

    resources = Resources(cpus=1.0, threads=1)

    def __init__(self, made):
        self.made = made

    def opened(self, stage):
        return self.made[stage]

    def progress(self, done, total, **numbers):
        pass


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
