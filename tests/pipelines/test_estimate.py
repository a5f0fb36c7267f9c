import json
from pathlib import Path

import pytest

from graftline.pipelines import plan, run
from graftline.stages import (
    Adapter,
    Endpoint,
    Llm,
    Made,
    Mapper,
    Model,
    Previous,
    Repeat,
    Rounds,
    Rows,
    Scorer,
    Selector,
    Source,
    Stage,
    Until,
    Verdict,
    View,
    evaluate,
    generate,
    read,
    score,
    select,
    sweep,
    train,
)
from graftline.stages.expected import Expected, Given, Usage, Volume
from graftline.stages.lm import tiny

from ..plan_and_record import far_off

ROOT = Path(__file__).resolve().parents[2]


class Lines(Source):
    path: str = "lines.jsonl"

    def pins(self, resolve):
        return {"path": resolve.file(self.path)}

    def expected(self, given):
        return Expected(Volume(len(Path(given.file(self.path)).read_text().split())))

    def make_rows(self, context):
        yield from (Made({"answer": line}) for line in Path(context.file(self.path)).read_text().split())


class Length(Scorer):
    adds = {"length": "int64"}

    def score_rows(self, table, context):
        return {"length": [len(answer) for answer in table["answer"].to_pylist()]}


class Judge(Scorer):
    adds = {"judged": "float64"}
    calls_model = True
    judge: Model


class Same(Mapper):
    """Changes nothing."""

    def map_rows(self, table, context):
        return table


class Split(Selector):
    views = ("train", "test")
    shares: tuple[float, float] = (0.25, 0.75)

    @property
    def train(self):
        return View(of=self, part="train")

    def expected(self, given):
        rows = given.rows(self.rows)
        return Expected({part: rows.share(share, "~") for part, share in zip(self.views, self.shares, strict=True)})

    def select_rows(self, table, context):
        return [
            Verdict(row, part="train" if number % 4 == 0 else "test")
            for number, row in enumerate(table["id"].to_pylist())
        ]


class Talk(Rounds):
    seeds: Rows
    teacher: Model
    count: int = 50

    def asks(self):
        return self.teacher

    def expected(self, given):
        return Expected(Volume(self.count, mark="~"), Usage(80, None, 2400, mark="~"))


class Tuned(Stage):
    makes = "adapter"
    model: Model
    rows: Rows


class Report(Stage):
    makes = "report"
    adapter: Adapter
    rows: Rows

    def expand(self):
        return {"tokens": Same(rows=self.rows)}

    def expected(self, given):
        return Expected(usage=Usage(2 * given.rows(self.rows).count, 100, 200, 300, 400))


@pytest.fixture
def look(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTLINE_STORE", str(tmp_path / "store"))
    (tmp_path / "lines.jsonl").write_text("one\ntwo\nthree\nfour\n" * 2)
    return lambda pipeline: {step.name: step for step in plan(pipeline, base=tmp_path).steps}


def test_estimates(look):
    split = Split(rows=Length(rows=Lines()))
    talk = Talk(seeds=split.train, teacher=Llm("tiny"), count=50)
    judged = Judge(rows=select.TopK(rows=Same(rows=split.train), by="length", k=100), judge=Llm("tiny"))
    both = select.Concat(rows=(talk, split.train))
    report = Report(adapter=Tuned(model=Llm("tiny"), rows=both), rows=split.train)
    found = look({"report": report, "judged": judged})
    rows = {name: step.rows for name, step in found.items() if step.kind == "rows"}
    assert rows["Lines"] == rows["Length"] == rows["Split"] == 8 and rows["Split.train"] == 2
    assert rows["Talk"] == 50 and rows["TopK"] == 2 and rows["Concat"] == 52
    assert found["Concat"].mark == found["Split.train"].mark == "~" and found["Lines"].mark == ""
    assert (found["Talk"].calls.requests, found["Talk"].calls.tokens_out) == (80, 2400)
    assert (found["Judge"].calls.requests, found["Judge"].calls.tokens_in) == (2, None)
    assert found["Report"].calls == Usage(4, 100, 200, 300, 400)
    assert found["Lines"].calls == found["Tuned"].calls == Usage()


def test_the_estimate_is_what_then_happens(look, tmp_path):
    split = Split(rows=Length(rows=Lines()))
    pipeline = select.TopK(rows=Same(rows=split.train), by="length", k=1)
    before = {name: step.rows for name, step in look(pipeline).items()}
    run(pipeline, base=tmp_path, address="here")
    counted = {name: step.rows for name, step in look(pipeline).items()}
    assert {name: rows for name, rows in counted.items() if name != "Same"} == {
        name: rows for name, rows in before.items() if name != "Same"
    }
    assert all(step.mark == "" for name, step in look(pipeline).items() if name != "Same"), "what is there is counted"


# --- every family: what is planned is within a factor of two of what the run then records ------------------------

ROWS, LABELS = 20, 6
TINY = Llm("tiny", engine="scripted")
TICKETS = read.Jsonl(path="tickets.jsonl", prompt="{text}", answer="{queue}", system="Name the ticket's queue.")
PAIRS = read.Jsonl(path="pairs.jsonl", shape="preference")


@pytest.fixture
def held_to(tmp_path, monkeypatch):
    """Plans and runs a pipeline, and holds one to the other. Answers with the plan's steps."""
    tiny.write(tmp_path)  # imports torch and transformers, which takes longer than these tests

    monkeypatch.setenv("GRAFTLINE_STORE", str(tmp_path / "store"))
    lines = (ROOT / "examples" / "tickets.jsonl").read_text().splitlines()[:ROWS]
    (tmp_path / "tickets.jsonl").write_text("\n".join(lines) + "\n")
    sums = [
        {"prompt": f"What is {n} + 9?", "chosen": f"It is {n + 9}, and 9 more.", "rejected": "No."} for n in range(8)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in sums))

    def check(pipeline, bounds=True):
        planned = plan(pipeline, base=tmp_path)
        done = run(pipeline, base=tmp_path, address="here")
        assert far_off(planned.to_dict(), done.record, bounds) == []
        return {step.name: step for step in (*planned.steps, *planned.later)}

    return check


def test_generating(held_to):
    drafts = generate.SelfInstruct(seeds=TICKETS, teacher=TINY, count=12)
    answers = generate.TeacherResponses(prompts=drafts, teacher=TINY, n=2, max_new_tokens=64)
    rated = score.Perplexity(rows=answers, model=TINY, of="last")
    pairs = generate.RatedPairs(candidates=rated, by="perplexity")
    found = held_to({"pairs": pairs, "fits": select.Grape(rows=rated)})
    assert found["SelfInstruct"].mark == "~" and found["RatedPairs"].mark == found["Grape"].mark == "<="
    assert (found["Grape"].rows, found["RatedPairs"].rows) == (12, 12), "two answers to each of 12 prompts"


def test_scoring(held_to):
    found = held_to({
        "ifd": score.Difficulty(rows=TICKETS, model=TINY),
        "answer": score.Perplexity(rows=TICKETS, model=TINY),
        "alone": score.Perplexity(rows=TICKETS, model=TINY, of="alone", label="alone"),
        "private": score.Pii(rows=TICKETS),
    })  # fmt: skip
    assert found["Difficulty"].calls.requests == ROWS + LABELS, "each of its labels is scored alone"
    assert found["Perplexity"].mark == "" and found["Pii"].calls == Usage()


def test_judging(held_to):
    found = held_to({
        "judged": score.LlmJudge(rows=TICKETS, judge=TINY),
        "read": score.LlmJudge(rows=TICKETS, judge=TINY, read="expected", dimensions={"use": "is it?"}, label="read"),
        "pairs": score.PairJudge(rows=PAIRS, judge=TINY, retries=1),
    })  # fmt: skip
    assert found["LlmJudge"].calls.mark == "~" and found["read"].calls.tokens_in == 0


def test_selecting(held_to):
    split = select.Split(rows=TICKETS, shares=(0.5, 0.25, 0.25), stratify="answer")
    scored = score.Perplexity(rows=TICKETS, model=TINY)
    budget = select.TokenBudget(rows=scored, model=TINY, by="perplexity", budget=800)
    found = held_to({
        "train": split.train, "dev": split.dev, "all": select.Concat(rows=(split.train, split.test)),
        "budget": budget, "few": select.TopK(rows=budget, by="perplexity", k=4),
        "some": select.Where(rows=scored, column="logprob_mean", at_least=-7.0),
        "distinct": select.NearDuplicates(rows=TICKETS),
    }, bounds=False)  # fmt: skip
    marks = {name: found[name].mark for name in ("Jsonl", "Split.train", "TokenBudget", "Where", "NearDuplicates")}
    assert marks == {"Jsonl": "", "Split.train": "~", "TokenBudget": "~", "Where": "<=", "NearDuplicates": "<="}
    assert 1 < found["TokenBudget"].rows < ROWS


def test_evaluating(held_to):
    metrics = (evaluate.ExactMatch(), evaluate.Choice(), evaluate.Loss(), evaluate.AnswerLength(),
               evaluate.AnswerAccuracy(by=score.Choice(), max_new_tokens=32), evaluate.Diversity())  # fmt: skip
    found = held_to(evaluate.Compare(model=TINY, rows=TICKETS, metrics=metrics))
    assert found["Compare"].calls.requests == 6 * ROWS and found["Compare"].calls.tokens_scored > 2000


@pytest.mark.parametrize(
    ("rows", "objective"), [(TICKETS, train.Sft()), (PAIRS, train.Dpo())], ids=["conversations", "pairs"]
)
def test_training(held_to, tmp_path, rows, objective):
    tuned = train.Train(model=TINY, rows=rows, objective=objective, epochs=2.0, max_length=110)
    tokenised = tuned.expand()["prepared"]
    held_to(tokenised)
    found = run(tokenised, base=tmp_path, address="here")["result"].rows()
    counted = 2 * sum(objective.length(row) for row in found.to_pylist())
    assert (
        0 < found.num_rows < ROWS and counted / 1.1 <= plan(tuned, base=tmp_path).calls.tokens_trained <= 1.1 * counted
    )


def test_bounds_of_loops_and_searches(tmp_path, held_to):
    split = select.Split(rows=TICKETS, shares=(0.5, 0.25, 0.25), stratify="answer")
    tuned = train.Train(model=TINY, rows=split.train, held_out=split.dev, epochs=1.0)
    one = plan(tuned, base=tmp_path).calls.tokens_trained
    asha = sweep.Sweep(stage=tuned, over={"adapter.rank": sweep.grid(2, 4)}, scheduler=sweep.Asha(grace=1))
    optuna = sweep.Sweep(stage=tuned, over={"optimizer.lr": sweep.log_uniform(1e-5, 1e-3)}, search="optuna", trials=9)
    assert (plan(asha, base=tmp_path).calls.tokens_trained, plan(asha, base=tmp_path).calls.mark) == (2 * one, "<=")
    assert (plan(optuna, base=tmp_path).calls.tokens_trained, plan(optuna, base=tmp_path).calls.mark) == (9 * one, "<=")
    filtered = tuned.replace("sampler", train.LossFilter())
    assert plan(filtered, base=tmp_path).calls == Usage(tokens_trained=one, mark="<=")
    written = generate.SelfInstruct(seeds=Previous(), teacher=TINY, count=12)
    keep = select.Concat(rows=(written, TICKETS))
    whole = Repeat(body=keep, start=TICKETS, at_most=3)
    until = Repeat(body=keep, start=TICKETS, at_most=3, until=Until(metric="rows", at_least=10))
    for loop, mark in ((whole, "~"), (until, "<=")):
        planned = plan(loop, base=tmp_path)
        (last,) = (step for step in planned.steps if step.name == "Repeat")
        assert (last.rows, last.mark) == (12 + ROWS, "~")
        assert (planned.calls.requests, planned.calls.mark) == (3 * 17, mark)


def test_an_endpoints_prices_are_summed(tmp_path, held_to, monkeypatch):
    teacher = Endpoint("m", url="http://localhost:1/v1", price_in=2.0, price_out=10.0)
    monkeypatch.setattr(Endpoint, "preflight", lambda self, file: None)
    planned = plan(generate.TeacherResponses(prompts=TICKETS, teacher=teacher, max_new_tokens=64), base=tmp_path)
    calls = planned.calls
    assert calls.tokens_out == ROWS * 32
    assert calls.money == pytest.approx((2 * calls.tokens_in + 10 * calls.tokens_out) / 1e6)


def test_nothing_is_known_of_rows_that_are_elsewhere():
    far = read.Jsonl(path="s3://bucket/far.jsonl")
    given = Given(file=str)
    assert far.expected(given).rows == Volume()
    drafts = generate.SelfInstruct(seeds=far, teacher=TINY, count=8).expected(given)
    assert drafts.rows.count == 8 and drafts.usage.requests == 11 and drafts.usage.tokens_in is None
    assert score.Difficulty(rows=far, model=TINY).expected(given).usage.requests is None
