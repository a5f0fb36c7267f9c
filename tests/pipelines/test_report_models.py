"""The report's models: curves, how far a merge is off, what a service answered."""

from graftline.pipelines.report_models import curves, json_lines, merge, transcript


def found(run, name):
    done = run.write()
    return done.line(name), done.opened(done.line(name))


def test_curves_are_by_stage_and_losses_stand_together(quickstart):
    (stage,) = curves(quickstart.stages, [], quickstart.metrics)
    assert stage["name"] == "Train"
    assert [(chart["title"], chart["names"]) for chart in (*stage["main"], *stage["more"])] == [
        ("loss", ["loss", "eval loss"]), ("tokens per second", ["tokens per second"]),
    ]  # fmt: skip


def test_what_is_no_number_or_has_no_step_is_no_curve(quickstart):
    key = quickstart.stages[-1]["key"]
    lines = [{"key": key, "step": 1, "note": "text", "flag": True}, {"key": key, "loss": 1.0}, {"key": "", "step": 1}]
    assert curves(quickstart.stages, [], lines) == []


def test_a_trials_curves_are_the_sweeps_to_show(quickstart):
    key = next(line["key"] for line in quickstart.stages if line["name"] == "Train")
    lines = [{**line, "asked_by": "sweep"} if line["key"] == key else line for line in quickstart.stages]
    assert curves(lines, [], quickstart.metrics) == []


def test_a_sweeps_curves_say_whose_they_are(quickstart):
    line = next(line for line in quickstart.stages if line["name"] == "Train")
    line["metrics"] = {"trials": [{}], "best": {"adapter.rank": 8}}
    (stage,) = curves(quickstart.stages, [], quickstart.metrics)
    assert stage["name"] == "Train, its best trial (adapter.rank = 8)"


def test_a_merge_says_how_far_each_way_is(quickstart):
    numbers = {"loss_unmerged": 0.018, "loss_exact": 0.018, "loss_original": 0.036, "kl_exact": 2e-9,
               "kl_original": 1.4, "logits_off_exact": 1e-4, "delta_share": 0.01, "weights_digest": "f"}  # fmt: skip
    line = quickstart.stage("IntoBase", "model", metrics=numbers)
    parents = {"adapter": {"digest": "d" * 64, "weight": 0.5}, "model": {"digest": "gone"}}
    quickstart.file(line, "merge.json", {"formula": "W + s·B·A", "parents": parents})
    told = merge(*found(quickstart, "IntoBase"), {"d" * 64: "Train"})
    assert told["ways"] == {
        "unmerged": {"loss": 0.018}, "exact": {"loss": 0.018, "kl": 2e-9, "logits_off": 1e-4},
        "original": {"loss": 0.036, "kl": 1.4},
    }  # fmt: skip
    assert told["rest"] == {"delta_share": 0.01} and told["formula"] == "W + s·B·A"
    assert [(each["name"], each["weight"]) for each in told["parents"]] == [("Train", 0.5), ("model", None)]
    assert merge(*found(quickstart, "Train"), {}) == {}, "what was not merged"


def test_a_transcript_keeps_questions_and_answers(quickstart):
    exchanges = transcript(*found(quickstart, "Service"))["exchanges"]
    assert [exchange["status"] for exchange in exchanges] == [200, 404]
    assert exchanges[0]["messages"][-1]["content"].startswith("parcel") and exchanges[0]["rest"] == {"model": "tickets"}


def test_the_line_a_kill_cut_short_is_left_out():
    assert json_lines('{"step": 1}\n{"step": 2, "lo') == [{"step": 1}]
    assert json_lines("[1]\n\n3\n") == []
