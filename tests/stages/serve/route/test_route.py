"""A route is fitted from rows, kept without pickle, and chooses alike wherever it is opened."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from graftline.stages import Embedder, Llm, Stage, read, serve
from graftline.stages.artefact import Artefact
from graftline.stages.errors import EngineFailed, InvalidField, MissingColumn, NothingKept, WrongKind
from graftline.stages.lm.tiny_embedder import HashedWords
from graftline.stages.rows import schema
from graftline.stages.serve.route.route import Fitted, choose, folds
from graftline.stages.stage import Resources

PROMPTS = {
    "billing": ("the invoice was sent twice", "a payment does not work", "the invoice is wrong", "pay the invoice"),
    "base": ("hello there friend", "good morning to you", "hi how are you", "hello good day"),
}


def rows(name):
    return read.Jsonl(path=f"{name}.jsonl", prompt="{text}", answer="{queue}")


def route(kind=serve.NearestNeighbours, **fields):
    return kind(**{"rows": {name: rows(name) for name in PROMPTS}, "embedder": Embedder("tiny")} | fields)


class Context:
    resources = Resources(cpus=1.0, threads=1)

    def progress(self, done, total, **numbers):
        assert done <= total


EMBED = HashedWords().embed


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """As the pipeline hands them over: the rows, and the hidden stages with their vectors."""
    root, made = tmp_path_factory.mktemp("store"), {}
    of = schema({"id": "string", "group": "string", "messages": "messages", "embedding": "list<float32>"})
    for target, texts in PROMPTS.items():
        lines = [
            {
                "id": f"{target}{place}", "group": f"{target}{place}", "embedding": vector,
                "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": target}],
            }
            for place, (text, vector) in enumerate(zip(texts, EMBED(texts), strict=True))
        ]  # fmt: skip
        lines.append({**lines[0], "id": f"{target}9", "embedding": None})
        place = root / target / "rows"
        place.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(lines, schema=of), place / "part-0.parquet")
        manifest = {"files": {"rows/part-0.parquet": {}}, "digest": target, "kind": "rows"}
        made[target] = Artefact(manifest, fs.LocalFileSystem(), str(root / target))
    return {"rows": dict.fromkeys(made), **{f"embedded {target}": each for target, each in made.items()}}


@pytest.fixture
def made(inputs, tmp_path):
    def make(stage, out="out", **changed):
        (tmp_path / out).mkdir()
        metrics = stage.make(Context(), tmp_path / out, **{**inputs, **changed})
        return tmp_path / out, metrics

    return make


@pytest.mark.parametrize("kind", [serve.NearestNeighbours, serve.LinearRouter])
def test_what_was_fitted_routes_the_prompts_it_has_seen(made, inputs, kind):
    folder, metrics = made(route(kind, **({"k": 1} if kind is serve.NearestNeighbours else {})))
    assert {file.name for file in folder.iterdir()} == {"router.safetensors", "router.json", "report.json"}
    fitted = Fitted(folder)
    for target, texts in PROMPTS.items():
        for text in texts:
            choice = fitted.choose(EMBED([text])[0])
            assert choice.target == target
            assert set(choice.quality) == set(PROMPTS)
            assert sum(choice.quality.values()) == pytest.approx(1)
    assert metrics["rows"] == 8
    report = json.loads((folder / "report.json").read_text())
    assert report["metrics"]["routed_right"]["all"]["value"] == metrics["routed_right"]
    assert set(report["columns"]) == {"all", *PROMPTS}


def test_equal_rows_make_an_equal_router(made):
    (_, one), (_, two) = made(route(), "one"), made(route(), "two")
    assert one["_digest"] == two["_digest"]
    assert made(route(mu=0.5), "three")[1]["_digest"] != one["_digest"]


def test_rows_are_embedded_once_for_all_who_ask():
    from graftline.stages import score

    stage = route()
    wanted = {f"embedded {name}": score.Embedding(rows=rows(name), embedder=Embedder("tiny")) for name in PROMPTS}
    assert dict(stage.expand()) == wanted
    assert not route(rows={name: each for name, each in zip(PROMPTS, wanted.values(), strict=True)}).expand()


def test_costs_count_as_much_as_mu_says(made, inputs):
    folder, _ = made(route(k=4, costs={"billing": 1.0, "base": 0.1}))
    fitted = Fitted(folder)
    vector = EMBED([PROMPTS["billing"][0]])[0]
    assert [fitted.choose(vector, mu).target for mu in (0.0, 1.0)] == ["billing", "base"]
    cost = {"billing": 1.0, "base": 0.1}
    paid = [cost[fitted.choose(vector, mu / 20).target] for mu in range(21)]
    assert paid == sorted(paid, reverse=True)


def test_choosing():
    """CARROT's rule on tables of quality and cost."""
    draw = np.random.default_rng(0)
    quality, costs = draw.random((200, 3)), np.array([0.9, 0.2, 0.5])
    for row in quality:
        assert choose(row, costs, 0.0) == row.argmax()
        assert choose(row, costs, 1.0) == 1
        paid = [costs[choose(row, costs, mu)] for mu in np.linspace(0, 1, 101)]
        assert all(later <= earlier for earlier, later in itertools.pairwise(paid))
        dominated = np.append(row, row.min() - 0.01), np.append(costs, 1.0)
        assert all(choose(*dominated, mu) == choose(row, costs, mu) for mu in (0.0, 0.3, 0.7, 1.0))
    assert choose(np.array([0.5, 0.5]), np.zeros(2), 0.0) == 0  # equals: the first by id


def test_the_oracle_is_at_least_as_good_as_any_single_target():
    draw = np.random.default_rng(1)
    quality, costs = (draw.random((300, 3)) < 0.5).astype(float), np.array([0.9, 0.2, 0.5])
    for mu in (0.0, 0.2, 0.5):
        worth = (1 - mu) * quality - mu * costs
        routed = np.mean([worth[row, choose(quality[row], costs, mu)] for row in range(len(quality))])
        assert routed >= worth.mean(0).max()


def test_folds_keep_groups_together():
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 4, 5, 5])
    seen = []
    for inside, outside in folds(groups):
        assert not set(groups[inside]) & set(groups[outside])
        seen += outside.tolist()
    assert sorted(seen) == list(range(10))
    assert list(folds(np.zeros(4))) == []


def test_a_target_without_rows_is_refused(made, inputs):
    empty = inputs["embedded base"].dataset().schema.empty_table()

    class Nothing:
        def rows(self, columns):
            return empty

    with pytest.raises(NothingKept, match="no rows for base"):
        made(route(), **{"embedded base": Nothing()})


def test_a_route_of_a_class_that_is_not_here_says_so(made):
    folder, _ = made(route())
    about = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps({**about, "module": "their_own"}))
    with pytest.raises(EngineFailed, match="their_own"):
        Fitted(folder)


class Bare(Stage):
    makes = "rows"

    def columns_made(self):
        return {"id": "string"}


@pytest.mark.parametrize(
    ("fields", "kind", "where"),
    [
        ({"rows": {}}, InvalidField, r"NearestNeighbours\.rows"),
        ({"rows": {"base": Bare()}}, MissingColumn, r"NearestNeighbours\.rows\.base"),
        ({"rows": {"base": Llm("tiny")}}, WrongKind, r"NearestNeighbours\.rows\.base"),
        ({"embedder": Llm("tiny")}, WrongKind, r"NearestNeighbours\.embedder"),
        ({"costs": {"nobody": 0.5}}, InvalidField, r"NearestNeighbours\.costs"),
        ({"costs": {"base": 2.0}}, InvalidField, r"NearestNeighbours\.costs\.base"),
        ({"mu": 1.5}, InvalidField, r"NearestNeighbours\.mu"),
        ({"k": 0}, InvalidField, r"NearestNeighbours\.k"),
    ],
)
def test_what_is_refused_when_it_is_built(fields, kind, where):
    with pytest.raises(kind, match=where):
        route(**fields)


def test_ones_own_route(made, inputs):
    """Two methods, and it is fitted, measured, kept and opened like the others."""
    folder, metrics = made(Longest(rows={name: rows(name) for name in PROMPTS}))
    about = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps(about))
    assert about["class"] == "Longest"
    assert 0 <= metrics["routed_right"] <= 1


class Longest(serve.Route):
    """Always the last target."""

    def fit(self, vectors, labels, groups):
        return {"width": np.array([vectors.shape[1]])}, {"targets": len(self.targets)}

    @classmethod
    def quality(cls, arrays, settings, vectors):
        return np.tile(np.arange(settings["targets"], dtype=float), (len(vectors), 1))
