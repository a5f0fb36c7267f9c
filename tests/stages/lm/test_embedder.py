"""An embedding model's reference: what it is in a fingerprint, what it makes, and where it is refused."""

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from graftline.stages import Embedder, Llm, Source, score, select, train
from graftline.stages.errors import FileMissing, InvalidField, ModelNotFound, WrongKind
from graftline.stages.generate import SelfInstruct
from graftline.stages.lm import hub
from graftline.stages.lm.embedding import open_embedder
from graftline.stages.value_graph import fingerprints, from_json, to_json


class Seeds(Source):
    """Rows."""


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
        if not (self.folder / path).exists():
            raise FileMissing("is not there", where=path)
        return b"".join(file.read_bytes() for file in sorted((self.folder / path).glob("*.*"))).hex()


def fingerprint(stage, pins):
    return fingerprints([stage], pins)[stage.key]


def test_it_is_given_by_position_and_is_a_value():
    embedder = Embedder("minilm-l6")
    assert (embedder.kind, embedder.name, repr(embedder)) == ("embedder", "minilm-l6", "Embedder(model='minilm-l6')")
    assert embedder == Embedder(model="minilm-l6") == pickle.loads(pickle.dumps(embedder))
    assert from_json(to_json({"e": embedder}))["e"] == embedder


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"model": ""}, "Embedder.model"),
        ({"model": "smollm2-135m-instruct"}, "Embedder.model"),
        ({"model": "minilm-l6", "revision": "main"}, "Embedder.revision"),
        ({"model": "./mine", "revision": "main"}, "Embedder.revision"),
        ({}, "Embedder.model"),
    ],
)
def test_wrong_fields_are_refused(fields, where):
    with pytest.raises(InvalidField) as found:
        Embedder(**fields)
    assert found.value.where == where


def test_it_is_refused_where_a_language_model_is_required():
    embedder, rows = Embedder("tiny"), Seeds()
    with pytest.raises(WrongKind, match=r"SelfInstruct\.teacher: takes model, but Embedder makes embedder"):
        SelfInstruct(seeds=rows, teacher=embedder, count=1)
    with pytest.raises(WrongKind, match=r"Train\.model"):
        train.Train(model=embedder, rows=rows)
    with pytest.raises(WrongKind, match=r"TokenBudget\.model"):
        select.TokenBudget(rows=rows, model=embedder, by="x", budget=1)
    with pytest.raises(InvalidField, match=r"use Embedder\('minilm-l6'\)|Use Embedder\('minilm-l6'\)"):
        Llm("minilm-l6")


def test_a_language_model_is_refused_where_an_embedder_is_required():
    with pytest.raises(WrongKind, match=r"Embedding\.embedder: takes embedder, but Llm makes model"):
        score.Embedding(rows=Seeds(), embedder=Llm("tiny"))


def test_an_embedding_models_directory_is_no_llm(encoder_directory, tmp_path):
    """transformers would load it with an output layer of random numbers and say nothing."""
    shutil.copytree(encoder_directory, tmp_path / "mine")
    with pytest.raises(ModelNotFound, match=r"is a BertModel, which writes no text.*Embedder\('mine'\)"):
        Llm("mine").preflight(World(tmp_path).file)
    with pytest.raises(ModelNotFound, match="writes no text"):
        Llm("mine").make(World(tmp_path), tmp_path / "out")


def test_a_models_own_directory_is_still_one(tiny_directory, tmp_path):
    shutil.copytree(tiny_directory, tmp_path / "mine")
    Llm("mine").preflight(World(tmp_path).file)
    assert Llm("mine").make(World(tmp_path), tmp_path / "out")["parameters"] == 172_608


def test_fingerprints_follow_what_matters(encoder_directory, tmp_path, monkeypatch):
    for name in ("a", "b"):
        shutil.copytree(encoder_directory, tmp_path / name)
    monkeypatch.setattr(hub, "commit", lambda name, revision: f"{name}@{revision}")
    pins = Pins(tmp_path)
    assert fingerprint(Embedder("a"), pins) == fingerprint(Embedder("b"), pins)
    (tmp_path / "b" / "vocab.txt").write_text("other")
    found = {fingerprint(Embedder(name), pins) for name in ("a", "b", "tiny", "minilm-l6", "some/one", "some/other")}
    assert len(found) == 6 and fingerprint(Embedder("some/one", revision="v2"), pins) not in found
    assert fingerprint(Embedder("tiny", label="another"), pins) == fingerprint(Embedder("tiny"), pins)
    assert fingerprint(Llm("tiny"), pins) not in found


def test_it_makes_a_directory_that_opens(encoder_directory, tmp_path):
    assert Embedder("tiny").make(World(tmp_path), tmp_path / "tiny") == {"fetch_seconds": 0.0, "parameters": 0}
    assert open_embedder(tmp_path / "tiny" / "model").size == 64
    mine = tmp_path / "mine"
    shutil.copytree(encoder_directory, mine)
    for stray in ("pytorch_model.bin", "modeling_evil.py", "README.md"):
        (mine / stray).write_text("no")
    metrics = Embedder("./mine").make(World(tmp_path), tmp_path / "out")
    made = tmp_path / "out" / "model"
    assert metrics["parameters"] > 0 and len(metrics["weights_digest"]) == 64
    assert (open_embedder(made).embed(["hello"]) == open_embedder(mine).embed(["hello"])).all()
    kept = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert "1_Pooling/config.json" in kept and not kept & {"pytorch_model.bin", "modeling_evil.py", "README.md"}
    assert all(Path(made / name).stat().st_mode & 0o044 for name in kept)


def test_what_cannot_be_used_is_refused(encoder_directory, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(encoder_directory, mine)
    (mine / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(ModelNotFound, match="a layer Dense"):
        Embedder("./mine").make(World(tmp_path), tmp_path / "out")
    (mine / "model.safetensors").rename(mine / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="pickled weights are never loaded"):
        Embedder("./mine").make(World(tmp_path), tmp_path / "again")
    with pytest.raises(ModelNotFound, match="no such model directory"):
        Embedder("./never").make(World(tmp_path), tmp_path / "third")


def test_the_built_in_one_comes_from_its_wheel(encoder_directory, tmp_path, monkeypatch):
    from graftline.stages.lm import embedder

    monkeypatch.setattr(embedder, "minilm", SimpleNamespace(NAME="minilm-l6", directory=lambda: (encoder_directory, 2)))
    assert Embedder("minilm-l6").make(World(tmp_path), tmp_path / "out")["fetch_seconds"] == 2
