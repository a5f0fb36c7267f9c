"""Compare: base and tuned on the same rows, through one engine, never on rows that were trained on."""

import json

import pyarrow.fs as fs
import pytest

from graftline.stages import Stage, evaluate
from graftline.stages.artefact import Artefact
from graftline.stages.errors import HeldOutLeak, InvalidField, MissingColumn, NothingKept, WrongKind
from graftline.stages.evaluate import measured
from graftline.stages.evaluate.compare import longest_by
from graftline.stages.evaluate.metric import Metric, Prediction
from graftline.stages.expected import Given, Volume
from graftline.stages.rows import schema
from graftline.stages.specification import Pins
from graftline.stages.value_graph import fingerprints, from_json, to_json


class Model(Stage):
    makes = "model"
    seed: int = 0


class Tuned(Stage):
    makes = "adapter"
    seed: int = 0


class Table(Stage):
    makes = "rows"


class Bare(Stage):
    makes = "rows"

    def columns_made(self):
        return {"id": "string"}


METRICS = (evaluate.ExactMatch(), evaluate.Choice())
TEXTS = [
    ("1", "no signal", "network"),
    ("2", "pay twice", "billing"),
    ("3", "LED red", "network"),
    ("4", "hi", "other"),
]


def compare(**fields):
    given = {"model": Model(), "adapters": {"tickets": Tuned()}, "rows": Table(), "metrics": METRICS} | fields
    return evaluate.Compare(**given)


def answers(**by_adapter):
    return {
        (None if adapter == "base" else adapter, text): answer
        for adapter, given in by_adapter.items()
        for (_, text, _), answer in zip(TEXTS, given, strict=True)
    }


TALKS = [("Let me see", "length"), ("", "stop"), ("network!", "stop"), ("A greeting", "stop")]
KNOWS = [("network", "stop"), ("Billing", "stop"), ("network", "stop"), ("billing", "stop")]


@pytest.fixture
def made(rows, artefact, table_engine, one_engine, tmp_path):
    """Makes a Compare on the four texts; returns its metrics, its report and the context."""

    def make(stage, engine, table=None, trained_on=None):
        table = table or rows([{"id": id, "text": text, "answer": answer} for id, text, answer in TEXTS])
        context = one_engine(engine, tmp_path)
        opened = {
            "rows": artefact("rows", table),
            "model": artefact("model"),
            "adapters": {name: artefact(name, trained_on=trained_on) for name in stage.adapters},
            "models": {name: artefact(name) for name in stage.models},
        }
        metrics = stage.make(context, tmp_path, **opened)
        return metrics, json.loads((tmp_path / "report.json").read_text(encoding="utf-8")), context

    return make


def best(adapter, text, choice):
    """The base likes `other`, the adapter knows."""
    right = {text: answer for _, text, answer in TEXTS}[text]
    return -1.0 if choice == (right if adapter else "other") else -2.0


def test_base_and_adapter_side_by_side(made, table_engine):
    stage = compare()
    metrics, report, context = made(stage, table_engine(answers(base=TALKS, tickets=KNOWS), best))
    assert metrics == {
        "exact_match/base": 0.25, "exact_match/tickets": 0.75, "exact_match": 0.75,
        "choice/base": 0.25, "choice/tickets": 1.0, "choice": 1.0,
    }  # fmt: skip
    assert report["columns"] == ["base", "tickets"]
    base = report["metrics"]["exact_match"]["base"]
    assert (base["n"], base["unparsed"], base["truncated"], base["empty"], base["not_a_label"]) == (4, 3, 1, 1, 1)
    assert base["ci_low"] < 0.25 < base["ci_high"]
    assert report["gains"]["exact_match"]["tickets"]["value"] == 0.5
    assert report["confusion"]["tickets"] == {
        "billing": {"billing": 1}, "network": {"network": 2}, "other": {"billing": 1},
    }  # fmt: skip
    assert report["confusion"]["base"]["network"] == {"(truncated)": 1, "network": 1}
    assert report["decoding"] == {
        "temperature": 0.0, "max_new_tokens": len("billing") + 4, "stop": "end of turn", "labels": 3,
    }  # fmt: skip
    assert (report["base_digest"], report["adapter_digests"]) == ("d" * 64, {"tickets": "tickets-digest"})
    assert context.opened_with == [(stage.model, dict(stage.adapters))]
    assert context.shown[-1][:2] == (16, 16)
    assert context.shown[-1][2] == {"choice/tickets": 1.0}


class Numbers(Metric):
    """A number a row, and a second figure in its cells."""

    figure, also, judges = "words", ("longest",), False

    def predict(self, asked, examples):
        return [Prediction("", value=float(len(example.reference) + bool(asked.adapter))) for example in examples]

    def cell(self, predictions, examples, cluster, seed):
        return {**measured.mean(predictions, cluster, seed), "longest": max(each.value for each in predictions)}

    def gain(self, before, after, examples, cluster, seed):
        return measured.gain(before, after, cluster, seed)


def test_numbers_beside_shares(made, table_engine):
    """A metric that is no share, first: samples and confusions are those of the one that judges."""
    stage = compare(metrics=(Numbers(), evaluate.ExactMatch()))
    metrics, report, _ = made(stage, table_engine(answers(base=TALKS, tickets=KNOWS), best))
    lengths = [len(answer) for _, _, answer in TEXTS]
    assert metrics["words/base"] == sum(lengths) / 4
    assert (metrics["longest/base"], metrics["longest/tickets"], metrics["longest"]) == (7, 8, 8)
    assert metrics["exact_match/tickets"] == 0.75
    assert report["gains"]["words"]["tickets"]["value"] == 1.0
    assert {sample["correct"]["tickets"] for sample in report["samples"]} == {True, False}
    assert set(report["confusion"]) == {"base", "tickets"}
    assert stage.metric("longest").name == "longest/tickets"
    assert stage.metric("words/base").name == "words/base"
    with pytest.raises(InvalidField, match="Give each figure once"):
        compare(metrics=(Numbers(), Numbers()))


class Unsure(evaluate.ExactMatch):
    """Cannot tell of one of the rows."""

    figure = "unsure"

    def correct(self, prediction, example):
        return None if example.reference == "billing" else super().correct(prediction, example)


def test_what_nobody_can_tell_is_missing_and_no_mistake(made, table_engine):
    metrics, report, _ = made(compare(metrics=(Unsure(),)), table_engine(answers(base=TALKS, tickets=KNOWS), best))
    cell = report["metrics"]["unsure"]["base"]
    assert (cell["n"], cell["missing"]) == (3, 1)
    assert metrics["unsure/base"] == pytest.approx(1 / 3)
    assert report["gains"]["unsure"]["tickets"]["n"] == 3
    assert {sample["correct"]["base"] for sample in report["samples"]} == {True, False, None}


def test_a_plan_knows_how_often_it_asks(made, table_engine):
    stage, engine = compare(), table_engine(answers(base=TALKS, tickets=KNOWS), best)
    made(stage, engine)
    four = Given({stage.rows.key: Volume(4, ({"messages": [{"role": "user", "content": "Which queue?"}]},))})
    told = stage.expected(four).usage
    assert told.requests == len(engine.requests) + len(engine.scored) == 16
    assert told.tokens_in > 0 < told.tokens_scored and told.tokens_trained == 0
    assert stage.expected(Given()).usage.requests is None


def test_adapters_are_compared_with_one_another(rows, artefact, table_engine, one_engine, tmp_path):
    """Two adapters of which one was trained on the other's rows and a made one: who got what right alone."""
    import pyarrow as pa

    stage = compare(adapters={"seeds": Tuned(), "more": Tuned(seed=1)}, metrics=(evaluate.ExactMatch(),))
    columns = schema({"id": "string", "parents": "list<string>", "group": "string"})
    seed, made = ({"id": id, "parents": parents, "group": "s"} for id, parents in (("s", []), ("m", ["s"])))
    trained = {name: pa.Table.from_pylist(own, schema=columns) for name, own in
               {"seeds": [seed], "more": [seed, made]}.items()}  # fmt: skip
    opened = {
        "rows": artefact("rows", rows([{"id": id, "text": text, "answer": answer} for id, text, answer in TEXTS])),
        "model": artefact("model"),
        "adapters": {name: artefact(name, trained_on=table) for name, table in trained.items()},
    }
    engine = table_engine(answers(base=TALKS, seeds=KNOWS, more=[("billing", "stop")] * 4), best)
    stage.make(one_engine(engine, tmp_path), tmp_path, **opened)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["pairs"]["exact_match"] == [
        {"columns": ["base", "more"], "n": 4, "right": [1, 1], "alone": [1, 1], "p": 1.0},
        {"columns": ["base", "seeds"], "n": 4, "right": [1, 3], "alone": [0, 2], "p": 0.5},
        {"columns": ["more", "seeds"], "n": 4, "right": [1, 3], "alone": [0, 2], "p": 0.5},
    ]
    assert report["beyond"] == [{"column": "more", "of": "seeds", "rows": 1, "made": 1}]
    assert report["trained_on"] == {"more": 2, "seeds": 1}


def test_samples_show_every_column(made, table_engine):
    engine = table_engine(answers(base=TALKS, tickets=KNOWS), best)
    _, report, _ = made(compare(samples=3, seed=5), engine)
    assert len(report["samples"]) == 3
    sample = next(sample for sample in report["samples"] if sample["reference"] == "network")
    assert sample["prompt"] in ("no signal", "LED red")
    assert sample["answers"]["tickets"] == "network"
    assert sample["correct"]["tickets"] is True
    assert set(sample["answers"]) == {"base", "tickets"}


def test_another_model_gets_an_engine_of_its_own(made, table_engine):
    merged, base = Model(seed=1), Model()
    stage = compare(models={"merged": merged}, metrics=(evaluate.ExactMatch(),))
    engines = {
        base.key: table_engine(answers(base=TALKS, tickets=TALKS), best),
        merged.key: table_engine(answers(base=KNOWS), best),
    }
    metrics, report, _ = made(stage, engines)
    assert metrics["exact_match/merged"] == metrics["exact_match"] == 0.75
    assert metrics["exact_match/tickets"] == 0.25
    assert report["model_digests"] == {"merged": "merged-digest"}


def test_an_adapter_as_the_model_answers_as_base(made, table_engine):
    stage = compare(model=Tuned(seed=9), adapters={}, metrics=(evaluate.ExactMatch(),))
    metrics, _, _ = made(stage, table_engine(answers(adapter=KNOWS), best))
    assert metrics["exact_match/base"] == 0.75


def test_rows_of_a_group_are_one_draw(made, table_engine, rows):
    table = rows([{"id": id, "text": text, "answer": answer, "group": "g"} for id, text, answer in TEXTS])
    _, report, _ = made(compare(), table_engine(answers(base=TALKS, tickets=KNOWS), best), table)
    assert "1 groups" in report["intervals"]
    cell = report["metrics"]["exact_match"]["tickets"]
    assert (cell["ci_low"], cell["value"], cell["ci_high"]) == (0.75, 0.75, 0.75)


def test_a_row_that_cannot_be_asked_is_wrong_and_counted(made, table_engine, rows):
    given = [*TEXTS, ("5", "too long", "billing"), ("6", "marks", "billing")]
    table = rows([{"id": id, "text": text, "answer": answer} for id, text, answer in given])
    _, report, context = made(compare(), table_engine(answers(base=TALKS, tickets=KNOWS), best), table)
    cell = report["metrics"]["exact_match"]["tickets"]
    assert (cell["n"], cell["value"]) == (6, 0.5)
    assert (cell["prompt_too_long"], cell["not_askable"], cell["unparsed"]) == (1, 1, 2)
    assert report["metrics"]["choice"]["tickets"]["unparsed"] == 2
    assert context.shown[-1][:2] == (24, 24)


def test_rows_without_an_answer_are_counted_and_none_is_refused(made, table_engine, rows):
    engine = table_engine(answers(base=TALKS, tickets=KNOWS), best)
    table = rows([{"id": "0", "text": "?", "answer": None}, *({"id": i, "text": t, "answer": a} for i, t, a in TEXTS)])
    _, report, _ = made(compare(), engine, table)
    assert report["rows_without_answer"] == 1
    assert report["metrics"]["exact_match"]["base"]["n"] == 4


def test_no_row_with_an_answer(made, table_engine, rows):
    with pytest.raises(NothingKept, match="no row has an answer"):
        made(compare(), table_engine({}, best), rows([{"id": "0", "text": "?", "answer": None}]))


@pytest.mark.parametrize(
    "trained",
    [
        {"id": "2", "parents": [], "group": "2"},
        {"id": "new", "parents": ["3"], "group": "3"},
        {"id": "new", "parents": ["elsewhere"], "group": "4|elsewhere"},
    ],
)
def test_rows_that_were_trained_on_are_refused(made, table_engine, trained):
    import pyarrow as pa

    columns = schema({"id": "string", "parents": "list<string>", "group": "string"})
    safe = {"id": "safe", "parents": [], "group": "safe"}
    engine = table_engine(answers(base=TALKS, tickets=KNOWS), best)
    with pytest.raises(HeldOutLeak, match=r"Compare\.adapters\.tickets"):
        made(compare(), engine, trained_on=pa.Table.from_pylist([safe, trained], schema=columns))
    assert engine.requests == []


def test_rows_from_elsewhere_are_welcome(made, table_engine):
    import pyarrow as pa

    columns = schema({"id": "string", "parents": "list<string>", "group": "string"})
    trained = pa.Table.from_pylist([{"id": "safe", "parents": ["seed"], "group": "seed"}], schema=columns)
    metrics, _, _ = made(compare(), table_engine(answers(base=TALKS, tickets=KNOWS), best), trained_on=trained)
    assert metrics["exact_match"] == 0.75


@pytest.mark.parametrize(
    ("fields", "kind", "where"),
    [
        ({"adapters": {"base": Tuned()}}, InvalidField, r"Compare\.adapters\.base"),
        ({"adapters": {"a/b": Tuned()}}, InvalidField, r"Compare\.adapters\.a/b"),
        ({"models": {"tickets": Model()}}, InvalidField, r"Compare\.models\.tickets"),
        ({"adapters": {"tickets": Model()}}, WrongKind, r"Compare\.adapters\.tickets"),
        ({"rows": Bare()}, MissingColumn, r"Compare\.rows"),
        ({"metrics": ()}, InvalidField, r"Compare\.metrics"),
        ({"metrics": (evaluate.Choice(), evaluate.Choice(choices=("a",)))}, InvalidField, r"Compare\.metrics"),
        ({"samples": -1}, InvalidField, r"Compare\.samples"),
    ],
)
def test_what_is_refused_when_it_is_built(fields, kind, where):
    with pytest.raises(kind, match=where):
        compare(**fields)


class Raw(Pins):
    def file(self, path):
        return path

    def pinned(self, name, find):
        return find()


def test_it_survives_json_and_its_metrics_are_part_of_its_fingerprint():
    stage = compare()
    kinds = {kind.qualified: kind for kind in (Model, Tuned, Table)}
    assert from_json(to_json({"": stage}), kinds)[""] == stage
    other = compare(metrics=(evaluate.ExactMatch(), evaluate.Choice(choices=("network", "billing"))))
    prints = fingerprints([stage, other], Raw())
    assert prints[stage.key] != prints[other.key]


@pytest.fixture
def tiny_engine(tmp_path):
    """The real engine of the tiny model, with an adapter that changes it, and the model's artefact."""
    import torch
    from peft import LoraConfig, get_peft_model

    from graftline.stages import Llm
    from graftline.stages.lm import tiny
    from graftline.stages.lm.load import load_model
    from graftline.stages.lm.open import open_engine

    (tmp_path / "base" / "model").mkdir(parents=True)
    tiny.write(tmp_path / "base" / "model")
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(load_model(tmp_path / "base" / "model", "float32"), config).save_pretrained(tmp_path / "adapter")
    files = {"model/tokenizer.json": {}}
    made = Artefact({"digest": "b", "files": files, "metrics": {}}, fs.LocalFileSystem(), str(tmp_path / "base"))
    llm = Llm("tiny", engine="generate", dtype="float32")
    with open_engine(llm, tmp_path / "base" / "model", {"tickets": tmp_path / "adapter"}, threads=1) as engine:
        yield engine, made


def test_on_a_real_engine(tiny_engine, rows, artefact, one_engine, tmp_path):
    """Every number of the report is what the engine itself says of these prompts."""
    engine, base = tiny_engine
    table = rows([{"id": id, "text": text, "answer": answer} for id, text, answer in TEXTS])
    opened = {"rows": artefact("rows", table), "model": base, "adapters": {"tickets": artefact("t")}, "models": {}}
    metrics = compare().make(one_engine(engine, tmp_path), tmp_path, **opened)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    labels = ["billing", "network", "other"]
    prompts = [[{"role": "user", "content": text}] for _, text, _ in TEXTS]
    for column, adapter in (("base", None), ("tickets", "tickets")):
        scores = engine.choice_logprobs(prompts, [labels] * 4, adapter=adapter)
        best = [labels[max(range(3), key=row.__getitem__)] for row in scores]
        right = sum(label == answer for label, (_, _, answer) in zip(best, TEXTS, strict=True))
        assert metrics[f"choice/{column}"] == right / 4
    answers = [sample["answers"] for sample in report["samples"]]
    assert all(answer["base"] != answer["tickets"] for answer in answers)
    assert report["base_digest"] == engine.digest
    assert report["decoding"]["max_new_tokens"] == longest_by(base)(labels) + 4


def test_adapters_answer_on_a_base_held_as_theirs(rows, artefact, table_engine, one_engine, tmp_path):
    """The base's own column is the float base, whatever the adapters were trained on."""
    stage = compare(adapters={"plain": Tuned(), "one": Tuned(seed=1), "two": Tuned(seed=2)})
    told = {"plain": "none", "one": "nf4", "two": "nf4"}
    opened = {
        "rows": artefact("rows", rows([{"id": id, "text": text, "answer": answer} for id, text, answer in TEXTS])),
        "model": artefact("model"),
        "adapters": {name: artefact(name) for name in told},
    }
    for name, held in told.items():
        folder = opened["adapters"][name].directory("adapter")
        folder.mkdir()
        (folder / "graftline.json").write_text(json.dumps({"base": {"held": held}}))
    context = one_engine(table_engine(answers(base=TALKS, plain=KNOWS, one=KNOWS, two=TALKS), best), tmp_path)
    stage.make(context, tmp_path, **opened)
    assert [(model, set(adapters)) for model, adapters in context.opened_with] == [
        (stage.model, {"plain"}),
        (stage.model, {"one", "two"}),
    ]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["held"] == {"base": "none", **told}
    assert report["metrics"]["exact_match"]["one"]["value"] == 0.75


def test_labels_are_measured_in_the_models_tokens(tiny_engine, artefact):
    from graftline.stages.lm.load import load_tokenizer

    _, base = tiny_engine
    tokens = len(load_tokenizer(base.directory("model"))("the ticket please")["input_ids"])
    assert tokens < len("the ticket please")
    assert longest_by(base)(["the", "the ticket please"]) == tokens
    assert longest_by(artefact("somewhere"))(["the", "Störung"]) == len("Störung".encode())
