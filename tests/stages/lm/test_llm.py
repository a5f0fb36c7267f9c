"""A model reference: what it is in a fingerprint, what it makes, and what is said where there is no such model."""

import pickle
import shutil

import pytest

from graftline.stages.errors import FileMissing, InvalidField, ModelNotFound
from graftline.stages.lm import hub
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.load import load_model, load_tokenizer, model_digest
from graftline.stages.value_graph import fingerprints, from_json, to_json


class World:
    """Stands for the pins and the context of a run whose pipeline file lies in a folder."""

    def __init__(self, folder):
        self.folder, self.lock = folder, {}

    def file(self, path):
        return str(self.folder / path)

    def pinned(self, name, find=lambda: None):
        return self.lock[name] if name in self.lock else self.lock.setdefault(name, find())


class Pins(World):
    def file(self, path):
        import hashlib

        place = self.folder / path
        if not place.exists():
            raise FileMissing("is not there", where=str(place))
        return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(place.iterdir()))).hexdigest()


def fingerprint(llm, pins):
    return fingerprints([llm], pins)[llm.key]


def test_it_is_given_by_position_and_is_a_value():
    llm = Llm("tiny", engine="scripted")
    assert (llm.kind, llm.model, llm.name) == ("model", "tiny", "tiny")
    assert repr(llm) == "Llm(model='tiny', engine='scripted')"
    assert llm == Llm(model="tiny", engine="scripted") == pickle.loads(pickle.dumps(llm))
    assert from_json(to_json({"m": llm}))["m"] == llm
    assert Llm("tiny", label="small").name == "small"


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"model": " "}, "Llm.model"),
        ({"model": "tiny", "revision": "main"}, "Llm.revision"),
        ({"model": "tiny", "dtype": "float16"}, "Llm.dtype"),
        ({"model": "tiny", "engine": "vllm"}, "Llm.engine"),
        ({}, "Llm.model"),
    ],
)
def test_wrong_fields_are_refused(fields, where):
    with pytest.raises(InvalidField) as found:
        Llm(**fields)
    assert found.value.where == where


def test_fingerprints_follow_what_matters(tmp_path):
    pins = Pins(tmp_path)
    built_in = {fingerprint(Llm(name), pins) for name in ("tiny", "smollm2-135m-instruct")}
    settings = {fingerprint(Llm("tiny", **more), pins) for more in ({"dtype": "float32"}, {"engine": "scripted"})}
    assert len(built_in | settings) == 4
    assert fingerprint(Llm("tiny", label="another"), pins) == fingerprint(Llm("tiny"), pins)


def test_a_directory_is_its_content(tiny_directory, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(tiny_directory, tmp_path / name)
    pins = Pins(tmp_path)
    assert fingerprint(Llm("a"), pins) == fingerprint(Llm("./b"), pins)
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text() + " ")
    assert fingerprint(Llm("a"), pins) != fingerprint(Llm("./b"), pins)


def test_a_hub_id_is_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "commit", lambda name, revision: f"{name}@{revision}")
    pins = Pins(tmp_path)
    first = fingerprint(Llm("some/model"), pins)
    assert first != fingerprint(Llm("some/model", revision="v2"), pins)
    monkeypatch.setattr(hub, "commit", lambda name, revision: "moved on")
    assert fingerprint(Llm("some/model"), pins) == first  # pinned in the run's lock
    assert fingerprint(Llm("some/model"), Pins(tmp_path)) != first


def test_what_is_fetched_is_the_pinned_commit(tiny_directory, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, commit, patterns):
        asked.append((name, commit))
        return tiny_directory, 1.5

    monkeypatch.setattr(hub, "snapshot", snapshot)
    monkeypatch.setattr(hub, "commit", lambda *_: pytest.fail("asked the Hub again"))
    world = World(tmp_path)
    world.lock["hub:some/model@main"] = "abc123"
    metrics = Llm("some/model").make(world, tmp_path / "out")
    assert asked == [("some/model", "abc123")] and metrics["fetch_seconds"] == 1.5


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "commit", lambda *_: pytest.fail("asked the Hub"))
    for name in ("./never", "/never/there", "models/mine/never"):
        with pytest.raises(ModelNotFound, match="no such model directory"):
            fingerprint(Llm(name), Pins(tmp_path))


def test_it_makes_a_clean_directory(tmp_path):
    metrics = Llm("tiny").make(World(tmp_path), tmp_path / "out")
    made = tmp_path / "out" / "model"
    assert metrics == {"fetch_seconds": 0.0, "parameters": 172_608, "weights_digest": model_digest(made)}
    load_model(made, "float32")
    assert load_tokenizer(made).chat_template


def test_a_directory_is_copied_without_what_does_not_belong(tiny_directory, tmp_path):
    source = tmp_path / "mine"
    shutil.copytree(tiny_directory, source)
    for stray in ("pytorch_model.bin", "modeling_evil.py", "README.md", "optimizer.pt", "weights_digest.json"):
        (source / stray).write_text('{"weights_digest": "a lie"}')
    metrics = Llm("./mine").make(World(tmp_path), tmp_path / "out")
    made = sorted(path.name for path in (tmp_path / "out" / "model").iterdir())
    assert made == ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
                    "tokenizer.json", "tokenizer_config.json", "weights_digest.json"]  # fmt: skip
    assert metrics["weights_digest"] == model_digest(tiny_directory)


def test_weights_that_are_no_safetensors_are_refused(tiny_directory, tmp_path):
    shutil.copytree(tiny_directory, tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").rename(tmp_path / "mine" / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="pickled weights are never loaded"):
        Llm("./mine").make(World(tmp_path), tmp_path / "out")
