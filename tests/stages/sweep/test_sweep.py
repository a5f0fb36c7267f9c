"""`Sweep` as a stage: what it refuses, what it reads, what it has made, what wins."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet as pq
import pytest

from graftline.pipelines import plan, retry
from graftline.stages import Llm, Previous, Repeat, Round, sweep, train
from graftline.stages.errors import CannotPlace, InvalidField, RunError, UnknownStage, WrongKind
from graftline.stages.stage import Resources
from graftline.stages.sweep.domain import Domain
from graftline.stages.value_graph import inputs

# --- the value --------------------------------------------------------------------------------------------------


def test_its_kind_is_that_of_the_stage_inside(pipe: Any, parts: Any) -> None:
    over = {"knob.rank": sweep.grid(4, 8)}
    assert sweep.Sweep(stage=pipe.tuned, over=over).kind == "adapter"
    in_report = {"adapters.x.knob.rank": sweep.grid(4, 8)}
    assert sweep.Sweep(stage=pipe.report, over=in_report, metric="right/x", mode="max").kind == "report"
    whole = train.Train(model=Llm("tiny"), rows=pipe.split.train, held_out=pipe.split.dev, adapter=train.Full())
    assert sweep.Sweep(stage=whole, over={"steps": sweep.grid(1, 2)}).kind == "model"
    with pytest.raises(WrongKind, match=r"Sweep\.stage: First makes rows"):
        sweep.Sweep(stage=pipe.chosen, over={"k": sweep.grid(1, 2)})


@pytest.mark.parametrize(
    ("over", "error"),
    [
        ({}, r"Sweep\.over: varies nothing"),
        ({"knob.ranks": sweep.grid(1)}, r"^knob\.ranks: Knob has no 'ranks'.*rank"),
        ({"nob.rank": sweep.grid(1)}, r"^nob\.rank: Fit has no 'nob'"),
        ({"names.1": sweep.grid("b")}, r"^names\.1: tuple has no '1'"),
        ({"rows.size": sweep.grid(1)}, r"^rows\.size: First has no 'size'"),
        ({"knob.rank": sweep.grid(4, "8")}, r"^\(Fit, 'knob\.rank'\).*integer"),
        ({"knob.rank": sweep.grid(4, 8), "knob": sweep.grid(1)}, r"Sweep\.over: knob\.rank is swept, and so is knob"),
        ({"workers": sweep.grid(1, 2)}, r"^workers: workers says how a stage runs"),
        ({"label": sweep.grid("a", "b")}, r"^label: label says how"),
        ({"rows.rows.of.seed": sweep.grid(0, 1)}, r"Sweep\.over: rows\.rows\.of\.seed: changes the rows that trials"),
        ({"held_out.of.rows.factor": sweep.grid(0, 1)}, r"factor: changes the rows that trials are compared on \(H"),
        ({"model.model": sweep.grid("tiny", "other")}, r"model\.model: would make adapters of several models"),
        ({"knob.lr": sweep.uniform(0.0, 1.0)}, r"Sweep\.over: knob\.lr: a grid cannot list"),
        ({"knob.lr": Domain()}, r"Sweep\.over: knob\.lr: has no values"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_with_their_path(pipe: Any, over: Any, error: str) -> None:
    with pytest.raises(InvalidField, match=error):
        sweep.Sweep(stage=pipe.tuned, over=over)


def test_the_same_field_by_two_names_is_refused(pipe: Any) -> None:
    with pytest.raises(InvalidField, match="is swept, and so is"):
        sweep.Sweep(stage=pipe.tuned, over={"rows.k": sweep.grid(1, 2), (pipe.chosen, "k"): sweep.grid(1, 2)})


def test_a_stage_that_is_not_under_it_is_refused(pipe: Any, parts: Any) -> None:
    with pytest.raises(UnknownStage, match="does not occur under Fit"):
        sweep.Sweep(stage=pipe.tuned, over={(parts.Texts(count=3), "count"): sweep.grid(1, 2)})


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"search": "random"}, r"Sweep\.trials: random search has no end"),
        ({"search": "optuna"}, r"Sweep\.trials: optuna search has no end"),
        ({"trials": 1}, r"Sweep\.trials: the grid has 2 combinations of 1 fields"),
        ({"trials": 0}, r"Sweep\.trials"),
        ({"mode": "least"}, r"Sweep\.mode"),
        ({"over": {"knob.rank": 4}}, r"Sweep\.over.*Domain"),
        ({"over": [4, 8]}, r"Sweep\.over"),
    ],
)
def test_wrong_searches_are_refused(pipe: Any, fields: Any, error: str) -> None:
    with pytest.raises(InvalidField, match=error):
        sweep.Sweep(**{"stage": pipe.tuned, "over": {"knob.rank": sweep.grid(4, 8)}, **fields})


def test_the_metric_must_be_of_the_trials(pipe: Any, parts: Any) -> None:
    over = {"knob.rank": sweep.grid(4, 8)}
    with pytest.raises(InvalidField, match=r"Sweep\.metric: Fit has no eval_loss: it has no held-out rows"):
        sweep.Sweep(stage=pipe.tuned.replace("held_out", None), over=over)
    other = pipe.report.replace("adapters.x.knob.rank", 5)
    with pytest.raises(InvalidField, match=r"Sweep\.metric: Judge is no report on Fit"):
        sweep.Sweep(stage=pipe.tuned, over=over, metric=other.metric("right/x"), mode="max")


def test_the_test_part_is_for_reports(pipe: Any, parts: Any) -> None:
    over = {"knob.rank": sweep.grid(4, 8)}
    with pytest.raises(InvalidField, match=r"would pick by Halves\.test, which is for reports.*`dev`"):
        sweep.Sweep(stage=pipe.tuned.replace("held_out", pipe.split.test), over=over)
    report = pipe.report.replace("rows", parts.First(rows=pipe.split.test))
    with pytest.raises(InvalidField, match=r"would pick by Halves\.test"):
        sweep.Sweep(stage=pipe.tuned, over=over, metric=report.metric("right/x"), mode="max")


def test_what_changes_the_held_out_rows_as_they_are_measured_is_refused(pipe: Any) -> None:
    tuned = train.Train(model=Llm("tiny"), rows=pipe.split.train, held_out=pipe.split.dev)
    with pytest.raises(InvalidField, match=r"max_length: changes the rows that trials are compared on \(.*Tokenised"):
        sweep.Sweep(stage=tuned, over={"max_length": sweep.grid(64, 128)})


def test_it_reads_the_frontier_alone(pipe: Any, parts: Any) -> None:
    student, split = pipe.student, pipe.split
    ranks = sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(4, 8)})
    assert set(inputs(ranks)) == {student, pipe.chosen, split.dev}
    budgets = sweep.Sweep(stage=pipe.tuned, over={(pipe.chosen, "k"): sweep.grid(1, 2), "knob.rank": sweep.grid(1, 2)})
    assert set(inputs(budgets)) == {student, split.train, split.dev}
    one = sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(8)})
    assert set(inputs(one)) == {student, pipe.chosen, split.dev}
    judged = sweep.Sweep(
        stage=pipe.tuned, over={"knob.rank": sweep.grid(4, 8)}, metric=pipe.report.metric("right/x"), mode="max"
    )
    assert set(inputs(judged)) == {student, pipe.chosen, split.dev}
    tuned = train.Train(model=student, rows=pipe.chosen, held_out=split.dev)
    hidden = set(tuned.expand().values())
    assert hidden < set(inputs(sweep.Sweep(stage=tuned, over={"adapter.rank": sweep.grid(4, 8)})))


def test_several_fields_of_stages_in_a_line_change_together(pipe: Any) -> None:
    over = {"knob.rank": sweep.grid(5), "knob.lr": sweep.grid(0.5), (pipe.chosen, "k"): sweep.grid(3)}
    (trial,) = sweep.Sweep(stage=pipe.tuned, over=over).foreseen().values()
    assert (trial.knob.rank, trial.knob.lr, trial.rows.k) == (5, 0.5, 3)
    assert trial.held_out == pipe.split.dev and trial.name == "Fit First.k=3, knob.lr=0.5, knob.rank=5"


def test_a_whole_plug_or_stage_may_be_swept(pipe: Any, parts: Any) -> None:
    other = parts.First(rows=pipe.split.train, k=3)
    over = {"knob": sweep.choice(parts.Knob(rank=1), parts.Knob(rank=2)), "rows": sweep.grid(pipe.chosen, other)}
    found = sweep.Sweep(stage=pipe.tuned, over=over).foreseen().values()
    assert {(trial.knob.rank, trial.rows.k) for trial in found} == {(1, 2), (1, 3), (2, 2), (2, 3)}


def test_no_label_changes_what_is_drawn(pipe: Any, parts: Any) -> None:
    """A mapping is in the order of its keys, and a stage's key sees its label."""

    def points(label: str) -> Any:
        scored = parts.Length(rows=parts.Texts(), label=f"{label}2")
        first, second = parts.First(rows=scored, label=label), parts.First(rows=scored, k=5)
        report = parts.Fit(model=parts.Brain(), rows=parts.Both(rows=(first, second)), held_out=None)
        over = {(first, "k"): sweep.integers(1, 99), (second, "k"): sweep.integers(1, 99), "knob.rank": sweep.grid(1)}
        return sweep.Sweep(stage=report, over=over, metric="rows", search="random", trials=3).points()

    assert len({str(points(label)) for label in ("a", "b", "c", "d", "e", "f")}) == 1


def test_schedulers_refuse_trials_that_cannot_be_ended_early(pipe: Any) -> None:
    asha, over = sweep.Asha(grace=2), {"knob.rank": sweep.grid(4, 8)}
    sweep.Sweep(stage=pipe.tuned, over=over, scheduler=asha)
    with pytest.raises(InvalidField, match=r"Sweep\.scheduler: a report is there only once"):
        sweep.Sweep(stage=pipe.tuned, over=over, scheduler=asha, metric=pipe.report.metric("right/x"), mode="max")
    tuned = train.Train(model=pipe.student, rows=pipe.split.train, held_out=pipe.split.dev)
    ranks = {"adapter.rank": sweep.grid(4, 8)}
    with pytest.raises(InvalidField, match=r"Sweep\.scheduler: a trial of 2 workers cannot be ended early"):
        sweep.Sweep(stage=tuned.replace("workers", 2), over=ranks, scheduler=asha)
    with pytest.raises(InvalidField, match=r"Sweep\.scheduler: Train is evaluated at its end alone"):
        sweep.Sweep(stage=tuned.replace("eval_every", 0), over=ranks, scheduler=asha)
    for wrong in ({"grace": 0}, {"grace": 1, "reduction": 1.0}):
        with pytest.raises(InvalidField, match="Asha"):
            sweep.Asha(**wrong)


def test_what_says_that_it_is_not_reproducible(pipe: Any) -> None:
    def why(**fields: Any) -> str:
        return sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(4, 8)}, **fields).not_reproducible()

    assert why() == why(search="random", trials=1) == why(search="optuna", trials=2) == ""
    assert "Asha" in why(scheduler=sweep.Asha(grace=1)) and "Optuna" in why(search="optuna", trials=9, at_once=2)


def test_a_sweep_in_a_loop_and_a_loop_in_a_sweep(pipe: Any, parts: Any, go: Any) -> None:
    body = parts.Fit(model=pipe.student, rows=parts.First(rows=Previous(), k=Round(plus=1)), held_out=pipe.split.dev)
    swept = sweep.Sweep(stage=body, over={"knob.rank": sweep.grid(4, 9)})
    looped = Repeat(body=parts.First(rows=Previous(), k=3), start=pipe.split.train, at_most=2)
    assert swept.is_open and Repeat(body=swept, start=pipe.split.train, at_most=1).kind == "adapter"
    around = sweep.Sweep(stage=pipe.tuned.replace("rows", looped), over={(looped, "body.k"): sweep.grid(1, 2)})
    assert go(around)["result"].metrics["best"] == {"Repeat.body.k": 2}
    assert go(Repeat(body=swept, start=pipe.split.train, at_most=1))["result"].metrics["best"] == {"knob.rank": 9}


# --- whole runs ---------------------------------------------------------------------------------------------------


def test_the_best_trial_is_the_artefact(pipe: Any, go: Any, made: Any) -> None:
    over = {"knob.rank": sweep.grid(4, 7, 13), (pipe.chosen, "k"): sweep.grid(1, 2)}
    best = sweep.Sweep(stage=pipe.tuned, over=over)
    run = go({"best": best, "report": pipe.report.replace("adapters.x", best)})
    artefact = run["best"]
    assert json.loads((artefact.directory("adapter") / "weights.json").read_text()) == [7, 2]
    assert artefact.digest == f"{7:064x}" and artefact.metrics["best"] == {"knob.rank": 7, "First.k": 2}
    assert artefact.metrics["eval_loss"] == pytest.approx(501.1) and artefact.manifest["reproducible"]
    assert made == {"Texts": 1, "Length": 1, "Fit": 6, "Judge": 1}, "the frontier was made once"
    assert run["report"].metrics == {"right/x": 0.07}
    table = pq.read_table(artefact.directory() / "trials.parquet").to_pylist()
    assert [(line["First.k"], line["knob.rank"], line["metric"]) for line in table] == [
        (1, 4, 1016.1), (1, 7, 1001.1), (1, 13, None), (2, 4, 516.1), (2, 7, 501.1), (2, 13, None),
    ]  # fmt: skip
    assert [each["status"] for each in artefact.metrics["trials"]] == ["full"] * 6
    assert all(each["seconds"] is not None and each["fingerprint"] for each in artefact.metrics["trials"])


def test_it_resumes_by_the_store_and_shares_trials(pipe: Any, go: Any, made: Any) -> None:
    def ranks(*values: int) -> Any:
        return sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(*values)})

    go(ranks(4, 8))
    assert made["Fit"] == 2
    again = go(ranks(4, 8))
    assert made["Fit"] == 2 and again.ran == 0
    more = go(ranks(4, 8, 12))
    assert made["Fit"] == 3 and more["result"].metrics["best"] == {"knob.rank": 8}
    go(pipe.tuned.replace("knob.rank", 12))
    assert made["Fit"] == 3, "a trial is an ordinary artefact"


def test_random_search(pipe: Any, go: Any, made: Any) -> None:
    def best(trials: int, seed: int = 0) -> Any:
        over = {"knob.rank": sweep.integers(1, 60), "knob.lr": sweep.log_uniform(0.01, 1.0)}
        return sweep.Sweep(stage=pipe.tuned, over=over, search="random", trials=trials, seed=seed)

    four = go(best(4))["result"]
    assert made["Fit"] == 4 and four.manifest["reproducible"]
    six = go(best(6))["result"]
    assert made["Fit"] == 6 and six.metrics["trials"][:4] == four.metrics["trials"], "more trials go on"
    finite = [trial for trial in six.metrics["trials"] if trial["metric"] is not None]
    assert six.metrics["best"] == min(finite, key=lambda trial: trial["metric"])["values"]
    go(best(4, seed=1))
    assert made["Fit"] == 10


def test_a_metric_from_a_report(pipe: Any, go: Any, made: Any) -> None:
    best = sweep.Sweep(
        stage=pipe.tuned, over={"knob.rank": sweep.grid(4, 8, 12)}, metric=pipe.report.metric("right/x"), mode="max"
    )
    artefact = go(best)["result"]
    assert artefact.metrics["best"] == {"knob.rank": 12} and artefact.metrics["right/x"] == 0.12
    assert made["Judge"] == 3 and artefact.kind == "adapter"
    swept = sweep.Sweep(
        stage=pipe.report, over={"adapters.x.knob.rank": sweep.grid(4, 8)}, metric="right/x", mode="max"
    )
    assert go(swept)["result"].metrics["best"] == {"adapters.x.knob.rank": 8} and made["Fit"] == 3


def test_what_fails_or_measures_nan_never_wins(pipe: Any, go: Any) -> None:
    best = sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(-1, 13, 100)})
    run = go(best)
    assert run["result"].metrics["best"] == {"knob.rank": 100} and run.state == "done"
    lines = {each["values"]["knob.rank"]: each for each in run["result"].metrics["trials"]}
    assert lines[-1]["status"] == "failed" and "the loss is nan at step 1" in lines[-1]["why"]
    assert lines[13]["status"] == "full" and lines[13]["metric"] is None
    assert (run["result"].metrics["trials_full"], run["result"].metrics["trials_failed"]) == (2, 1)
    for ranks, why in (((-1, -2), "the loss is nan"), ((13,), "no finite number")):
        with pytest.raises(RunError, match=rf"none of {len(ranks)} trials has a eval_loss: .*{why}"):
            go(sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(*ranks)}))


def test_retry_tries_again_what_failed_and_finds_the_others(
    pipe: Any, go: Any, made: Any, parts: Any, tmp_path: Any
) -> None:
    """A committed sweep is cached whatever became of its trials; `graftline retry RUN Sweep` makes it anew."""
    best = sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(-1, 4, 100)})
    first = go(best)
    assert first["result"].metrics["best"] == {"knob.rank": 4} and made["Fit"] == 3
    assert go(best).ran == 0 and made["Fit"] == 3, "run again, it is taken as it is"
    again = retry("Sweep", store=str(tmp_path / "store"), address="here")
    assert made["Fit"] == 4, "the trial that failed was made again, the others were found"
    trials = {line["values"]["knob.rank"]: line["status"] for line in again["result"].metrics["trials"]}
    assert trials == {-1: "failed", 4: "full", 100: "full"}, "it fails for the same reason"
    parts.Fit.broken = False
    mended = retry("Sweep", store=str(tmp_path / "store"), address="here")
    assert made["Fit"] == 5 and mended["result"].metrics["trials_failed"] == 0
    assert mended["result"].digest == again["result"].digest and go(best).ran == 0
    trial = next(line for line in mended.record["stages"] if line["asked_by"])
    with pytest.raises(UnknownStage, match=r"Sweep asked for it. Retry Sweep"):
        retry(trial["fingerprint"], mended.id, str(tmp_path / "store"), address="here")


def test_ties_go_to_the_smaller_fingerprint(pipe: Any, go: Any) -> None:
    for ranks in ((7, 9), (9, 7)):
        artefact = go(sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(*ranks)}))["result"]
        first = min(artefact.metrics["trials"], key=lambda each: each["fingerprint"])
        assert {each["metric"] for each in artefact.metrics["trials"]} == {501.1}
        assert artefact.metrics["best"] == first["values"]


def test_a_metric_that_the_trials_do_not_have(pipe: Any, go: Any) -> None:
    with pytest.raises(InvalidField, match=r"Sweep\.metric: the trials have no 'accuracy'.*rows, eval_loss"):
        go(sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(4, 8)}, metric="accuracy"))


def test_an_error_of_the_world_ends_it(pipe: Any, go: Any, parts: Any) -> None:
    class Down(parts.Fit):
        def make(self, *arguments: Any, **inputs: Any) -> Any:
            raise OSError(28, "no space left on device")

    fields = {name: value for name, value in pipe.tuned.__dict__.items()}
    with pytest.raises(Exception, match=r"full|no space"):
        go(sweep.Sweep(stage=Down(**fields), over={"knob.rank": sweep.grid(4, 8)}))


def test_plan_shows_the_trials_and_what_of_them_is_there(pipe: Any, go: Any, tmp_path: Any) -> None:
    best = sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(4, 8)})
    go(pipe.tuned.replace("knob.rank", 8))
    planned = plan(best, str(tmp_path / "store"), base=tmp_path)
    trials = {step["name"]: (step["status"], step["why"]) for step in planned.to_dict()["steps"] if step["kind"] ==
              "adapter"}  # fmt: skip
    assert trials["Sweep"][0] == "run"
    assert trials["Fit knob.rank=4"] == ("run", "asked for by Sweep") and trials["Fit knob.rank=8"][0] == "cached"


def test_plan_refuses_trials_that_cannot_be_placed(pipe: Any, tmp_path: Any) -> None:
    tuned = train.Train(
        model=Llm("tiny"), rows=pipe.split.train, held_out=pipe.split.dev, workers=3, resources=Resources(cpus=99.0)
    )
    for search in ({}, {"search": "optuna", "trials": 2}):
        best = sweep.Sweep(stage=tuned, over={"adapter.rank": sweep.grid(4, 8)}, **search)
        with pytest.raises(CannotPlace, match=r"Train adapter\.rank=4: needs 297 cpus at once \(4 processes\)"):
            plan(best, str(tmp_path / "store"), base=tmp_path)


def test_trials_are_not_the_pipelines_own_adapters(pipe: Any, go: Any) -> None:
    run = go({"best": sweep.Sweep(stage=pipe.tuned, over={"knob.rank": sweep.grid(4, 8)})})
    asked = {line["name"] for line in run.record["stages"] if line["asked_by"]}
    assert asked == {"Fit knob.rank=4", "Fit knob.rank=8"}
