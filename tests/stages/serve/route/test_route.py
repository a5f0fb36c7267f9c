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


# --- targets that were tried ------------------------------------------------------------------------------------

PRICES = {
    "large": serve.Price(input=10.0, output=30.0),
    "maths": serve.Price(input=1.0, output=4.0),
    "small": serve.Price(input=0.6, output=0.6),
}
KINDS = [serve.NearestNeighbours, serve.LinearRouter]


class Table:
    """Rows as the hidden stage hands them over."""

    def __init__(self, prompts, good, tokens, groups=None):
        texts = list(prompts)
        vectors = EMBED(texts)
        self.lines = [
            {
                "id": f"row {place}", "group": None if groups is None else groups[place],
                "messages": [{"role": "user", "content": text}], "embedding": vectors[place].tolist(),
                "good": good[place], "tokens": tokens[place],
            }
            for place, text in enumerate(texts)
        ]  # fmt: skip

    def rows(self, columns):
        return pa.Table.from_pylist([{name: line[name] for name in columns} for line in self.lines])


def tried(kind, names, prices=True, **fields):
    rows = {name: read.Jsonl(path=name, prompt="{text}", answer="{a}", keep=("good", "tokens")) for name in names}
    priced = {"prices": {name: PRICES[name] for name in names}, "tokens_out": "tokens"} if prices else {}
    return kind(rows=rows, embedder=Embedder("tiny"), tried=serve.Tried(quality="good", **priced), **fields)


@pytest.fixture
def make(tmp_path):
    def make(stage, tables):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        out.mkdir()
        metrics = stage.make(Context(), out, rows=tables)
        return Fitted(out), json.loads((out / "report.json").read_text())["tradeoff"], metrics

    return make


@pytest.fixture
def two_tasks():
    """Prompts of two kinds; `small` is right on one of them, `maths` on the other, `large` on nearly all."""
    draw = np.random.default_rng(0)
    fillers = [" ".join(f"word{draw.integers(40)}" for _ in range(4)) for _ in range(120)]
    prompts = [
        f"what is the sum of numbers {each}" if place % 2 else f"please greet my friend {each}"
        for place, each in enumerate(fillers)
    ]
    kind = np.arange(120) % 2
    good = {"small": 1 - kind, "maths": kind, "large": (draw.random(120) < 0.95)}
    tokens = {"small": 20 + 0 * kind, "maths": 30 + 50 * kind, "large": 40 + 160 * kind}
    return prompts, {name: (good[name].tolist(), tokens[name].tolist()) for name in good}


def tables_of(two_tasks, names=("large", "maths", "small")):
    prompts, told = two_tasks
    return {name: Table(prompts, *told[name]) for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_quality_and_cost_of_a_request_are_estimated(make, two_tasks, kind):
    fitted, report, metrics = make(tried(kind, PRICES), tables_of(two_tasks))
    prices, asked = report["prices"], ["what is the sum of numbers word3 word4", "please greet my friend word1 word7"]
    assert prices["dearest"] == pytest.approx(
        max(200 * 30 + 10 * (len(each) // 4 + 1) for each in two_tasks[0]) / 1e6, rel=0.1
    )
    for text, right, written in zip(asked, ("maths", "small"), (200, 40), strict=True):
        vector = EMBED([text])[0]
        choice = fitted.choose(vector, 0.3, text)
        assert choice.target == right and choice.quality[right] > 0.8
        assert fitted.choose(vector, 1.0, text).target == "small"
        assert fitted.choose(vector, 0.0, text).target == max(choice.quality, key=choice.quality.get)
        wanted = (10 * (len(text) // 4 + 1) + 30 * written) / 1e6 / prices["dearest"]
        near = 0.15 if kind is serve.NearestNeighbours else 0.5  # a plane through few words of many
        assert choice.cost["large"] == pytest.approx(wanted, rel=near)
        longer = fitted.choose(vector, 0.3, text + " " * 4000)
        assert longer.cost["large"] - choice.cost["large"] == pytest.approx(10 * 1000 / 1e6 / prices["dearest"])
        paid = [(found := fitted.choose(vector, mu / 50, text)).cost[found.target] for mu in range(51)]
        assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(paid))
    assert (metrics["prompts"], metrics["compared"], report["prompts"]) == (120, 120, 120)
    assert report["above_line"]["ci_low"] > 0.1 and metrics["above_line"] == report["above_line"]["value"]
    assert [each["target"] for each in report["always"]] == ["large", "maths", "small"]
    assert report["always"][0]["quality"] == pytest.approx(np.mean(two_tasks[1]["large"][0]))


@pytest.mark.parametrize(("kind", "fields"), [(serve.NearestNeighbours, {"k": 32}), (serve.LinearRouter, {})])
def test_routing_is_above_the_line_that_joins_single_targets(make, data_dir, kind, fields):
    """Grade-school maths and exam questions: two models as they did (RouteLLM's outcomes), a drawn one that is good at
    maths. Of outcomes dealt out anew among the prompts there is nothing to be learned, and nothing is."""
    draw, lines = np.random.default_rng(0), []
    for name in ("gsm8k", "mmlu"):
        found = (data_dir / "router_outcomes" / f"{name}_responses.jsonl").read_text().splitlines()
        lines += [json.loads(found[place]) for place in draw.permutation(len(found))[:500]]
    prompts, maths = [line["prompt"] for line in lines], np.arange(1000) < 500
    good = {
        "large": [float(line["gpt-4-1106-preview"]) for line in lines],
        "small": [float(line["mistralai/Mixtral-8x7B-Instruct-v0.1"]) for line in lines],
        "maths": (draw.random(1000) < np.where(maths, 0.9, 0.35)).tolist(),
    }
    tokens = np.where(maths, 150, 40)
    found = {}
    for dealt in (False, True):
        order = draw.permutation(1000) if dealt else np.arange(1000)
        tables = {name: Table(prompts, [own[place] for place in order], tokens[order]) for name, own in good.items()}
        found[dealt] = make(tried(kind, PRICES, **fields), tables)[1]["above_line"]
    assert found[False]["ci_low"] > 0.02
    assert found[True]["value"] < 0.01


def test_a_dominated_target_more_changes_no_choice(make, two_tasks):
    """It is by far the dearest, which cost 1 is not measured by."""
    prompts, told = two_tasks
    stage = tried(serve.NearestNeighbours, ("large", "small"), k=8)
    rows = {**stage.rows, "a worse one": stage.rows["small"]}
    prices = {**stage.tried.prices, "a worse one": serve.Price(input=50.0, output=50.0)}
    more = serve.NearestNeighbours(
        rows=rows, embedder=stage.embedder, k=8,
        tried=serve.Tried(quality="good", prices=prices, tokens_out="tokens"),
    )  # fmt: skip
    good, tokens = told["large"]
    worse = Table(prompts, [one * (place % 3 > 0) for place, one in enumerate(good)], [9 * each for each in tokens])
    tables = tables_of(two_tasks, ("large", "small"))
    (one, *_), (other, *_) = make(stage, tables), make(more, {"a worse one": worse, **tables})
    assert one.prices["dearest"] == other.prices["dearest"]
    for text, vector in zip(prompts, EMBED(prompts), strict=True):
        for mu in (0.0, 0.1, 0.5, 0.9, 1.0):
            assert one.choose(vector, mu, text).target == other.choose(vector, mu, text).target


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_a_group_never_vouch_for_each_other(make, kind):
    """Twins with the same words and the same luck: known from their twin they would be foreseen."""
    draw = np.random.default_rng(0)
    luck = draw.integers(0, 2, 100)
    prompts = [f"word{place}a word{place}b word{place}c {twin * '?'}" for place in range(100) for twin in range(2)]
    good, groups = np.repeat(luck, 2).tolist(), np.repeat(np.arange(100), 2).astype(str).tolist()
    areas = {}
    for name, own in (("kept", groups), ("apart", None)):
        tables = {target: Table(prompts, good, [1] * 200, own) for target in ("large", "small")}
        areas[name] = make(tried(kind, ("large", "small")), tables)[1]["always"][0]["roc_area"]
    assert areas["kept"] < 0.65 < 0.8 < areas["apart"]


def test_quality_is_estimated_and_costs_are_given(make, two_tasks):
    stage = tried(serve.NearestNeighbours, PRICES, prices=False, costs={"large": 1.0, "maths": 0.2}, mu=0.2)
    fitted, report, metrics = make(stage, tables_of(two_tasks))
    choice = fitted.choose(EMBED(["please greet my friend"])[0])
    assert (choice.target, choice.cost) == ("small", {"large": 1.0, "maths": 0.2, "small": 0.0})
    assert report["prices"] is None and report["own"]["mu"] == 0.2
    assert [each["cost"] for each in report["always"]] == pytest.approx([1.0, 0.2, 0.0])
    assert (metrics["cost"], metrics["quality"]) == (report["own"]["cost"], report["own"]["quality"])
    assert metrics["cost"] < 0.2 and metrics["quality"] > 0.9


def test_targets_tried_on_different_prompts_are_routed_but_not_compared(make, two_tasks):
    prompts, told = two_tasks
    tables = {
        "small": Table(prompts[:60], *(each[:60] for each in told["small"])),
        "large": Table(prompts[60:], *(each[60:] for each in told["large"])),
    }
    fitted, report, metrics = make(tried(serve.LinearRouter, ("large", "small")), tables)
    assert report["prompts"] == 0 and "above_line" not in metrics and metrics["prompts"] == 120
    text = "what is the sum of numbers word3"
    assert fitted.choose(EMBED([text])[0], 0.0, text).target == "large"


def test_the_same_tried_rows_make_the_same_router(make, two_tasks):
    digests = [make(tried(serve.NearestNeighbours, PRICES), tables_of(two_tasks))[2]["_digest"] for _ in range(2)]
    assert digests[0] == digests[1]
    assert make(tried(serve.NearestNeighbours, PRICES, k=2), tables_of(two_tasks))[2]["_digest"] != digests[0]


@pytest.mark.parametrize(
    ("fields", "kind", "where"),
    [
        ({"tried": serve.Tried(quality="nothing")}, MissingColumn, r"rows\.large: needs the column 'nothing'"),
        ({"tried": serve.Tried(quality="verified")}, MissingColumn, r"score\.Verify"),
        ({"costs": {"large": 0.5}}, InvalidField, r"\.costs: there are prices"),
        ({"tried": serve.Tried(quality="good", prices={"large": PRICES["large"]})}, InvalidField, "none for small"),
        (
            {"tried": serve.Tried(quality="good", prices=PRICES)},
            InvalidField,
            r"tried\.prices: there is no target 'maths'",
        ),
    ],
)
def test_what_is_refused_of_tried_targets(fields, kind, where):
    stage = tried(serve.NearestNeighbours, ("large", "small"))
    with pytest.raises(kind, match=where):
        serve.NearestNeighbours(**{"rows": stage.rows, "tried": stage.tried, "embedder": Embedder("tiny")} | fields)


def test_ones_own_route_of_tried_targets(make, two_tasks):
    with pytest.raises(InvalidField, match=r"Longest\.tried: it does not learn"):
        tried(Longest, ("large", "small"))
    fitted, report, _ = make(tried(Shortest, PRICES, mu=1.0), tables_of(two_tasks))
    assert fitted.choose(EMBED(["hello"])[0]).target == "small"
    assert report["routed"]["mu"][0] == 0.0 and report["routed"]["shares"]["large"][0] == 1.0


class Shortest(serve.Route):
    """The mean of each target, whatever the prompt."""

    def fit_tried(self, tried):
        return {"quality": np.nanmean(tried.quality, 0), "tokens": np.nanmean(tried.tokens_out, 0)}, {}

    @classmethod
    def quality(cls, arrays, settings, vectors):
        return np.tile(arrays["quality"], (len(vectors), 1))

    @classmethod
    def tokens(cls, arrays, settings, vectors):
        return np.tile(arrays["tokens"], (len(vectors), 1))
