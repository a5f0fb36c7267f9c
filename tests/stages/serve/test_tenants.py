"""One client's adapter never answers another's request: faults that served adapters elsewhere, as tests of ours.

PEFT's `adapter_names=` leaves its hooks behind when a forward pass raises, and the next plain request of the same batch
size is then silently answered with the failed one's adapter; servers kept stale prefixes of a reloaded adapter, and
died of a bad one.
"""

import asyncio
import json

import pytest
import torch

from graftline.stages.errors import AdapterMismatch, EngineFailed
from graftline.stages.lm import tiny
from graftline.stages.lm.load import model_digest
from graftline.stages.serve.replica import EngineReplica

CALL = {
    "id": "1", "adapter": None, "messages": [{"role": "user", "content": "the invoice was sent twice, please help"}],
    "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8, "stop": [], "seed": 0, "presence": 0.0,
}  # fmt: skip


@pytest.fixture
def base(committed):
    return committed("model", tiny.write)


@pytest.fixture
def adapter(committed, base):
    def make(name, seed):
        from peft import LoraConfig, get_peft_model

        from graftline.stages.lm.load import load_model

        def write(folder):
            torch.manual_seed(seed)
            model = load_model(base.directory("model"), "float32")
            config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
            get_peft_model(model, config).save_pretrained(folder)
            card = {"name": "tiny", "weights_digest": model_digest(base.directory("model")), "held": "none"}
            (folder / "graftline.json").write_text(json.dumps({"base": card}))

        return committed(name, write, "adapter")

    return make


@pytest.fixture(params=["local", "generate"])
def replica(request, base, adapter):
    model = {"uri": base.uri, "digest": base.digest}
    llm = {"model": "tiny", "engine": request.param, "dtype": "float32"}
    adapters = {name: adapter(name, seed) for seed, name in enumerate(("one", "two"))}
    places = {name: {"uri": made.uri, "digest": made.digest} for name, made in adapters.items()}
    replica = EngineReplica({**model, "llm": llm}, places, threads=1, concurrency=4)
    yield replica
    replica.engine.close()


def text(replica, adapter=None, **changed):
    return asyncio.run(replica.answer({**CALL, "adapter": adapter, **changed}))["text"]


class Broken(torch.nn.Module):
    """A layer that fails while it is told to."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.failing = inner, False

    def forward(self, *args, **kwargs):
        if self.failing:
            raise RuntimeError("a forced failure")
        return self.inner(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def test_a_request_that_failed_leaves_no_adapter_behind(replica):
    alone = {name: text(replica, name) for name in (None, "one", "two")}
    assert len(set(alone.values())) == 3
    layers = replica.engine.loaded.model.model.layers
    layers[1] = broken = Broken(layers[1])
    for failed, after in (("one", None), ("two", "one"), ("one", None)):
        broken.failing = True
        with pytest.raises(EngineFailed, match="a forced failure"):
            text(replica, failed)
        broken.failing = False
        assert text(replica, after) == alone[after]  # of the same shape, at once
    assert replica.engine.choice_logprobs([CALL["messages"]], [["yes", "no"]])[0] == pytest.approx(
        replica.engine.choice_logprobs([CALL["messages"]], [["yes", "no"]], adapter=None)[0]
    )


def test_a_scoring_that_failed_leaves_no_adapter_behind(replica):
    engine, prompts = replica.engine, [CALL["messages"]]
    base, one = (engine.choice_logprobs(prompts, [["yes", "no"]], adapter=name) for name in (None, "one"))
    assert base != one
    layers = engine.loaded.model.model.layers
    layers[1] = broken = Broken(layers[1])
    broken.failing = True
    with pytest.raises(RuntimeError, match="a forced failure"):
        engine.choice_logprobs(prompts, [["yes", "no"]], adapter="one")
    broken.failing = False
    assert engine.choice_logprobs(prompts, [["yes", "no"]]) == base
    assert text(replica) == text(replica)


def test_side_by_side_every_request_has_its_own(replica):
    alone = {name: text(replica, name) for name in (None, "one", "two")}

    async def crowd():
        names = [None, "one", "two", "one", None, "two"]
        calls = [replica.answer({**CALL, "id": str(place), "adapter": name}) for place, name in enumerate(names)]
        return list(zip(names, await asyncio.gather(*calls), strict=True))

    for name, answer in asyncio.run(crowd()):
        assert answer["text"] == alone[name]


def test_a_name_that_is_loaded_again_answers_anew(replica, adapter):
    """No key or value of the old adapter is kept for the same prompt."""
    before, other = text(replica, "one"), text(replica, "two")
    replica.engine.load_adapter("one", adapter("newer", 1).directory("adapter"))  # the factors of "two"
    assert text(replica, "one") == other != before


def test_a_bad_adapter_kills_nobody(replica, adapter):
    before = {name: text(replica, name) for name in (None, "one")}
    foreign = adapter("foreign", 5).directory("adapter")
    card = json.loads((foreign / "graftline.json").read_text())
    (foreign / "graftline.json").write_text(json.dumps({"base": card["base"] | {"weights_digest": "0" * 64}}))
    with pytest.raises(AdapterMismatch):
        replica.engine.load_adapter("one", foreign)
    with pytest.raises(AdapterMismatch):
        text(replica, "never loaded")
    assert {name: text(replica, name) for name in before} == before


def test_plain_text_is_continued_by_the_adapter_that_was_asked(replica):
    plain = {"messages": [], "prompt": "the invoice was"}
    texts = {text(replica, name, **plain) for name in (None, "one", "two")}
    assert len(texts) == 3
    assert text(replica, **plain) != text(replica, messages=[{"role": "user", "content": "the invoice was"}])
