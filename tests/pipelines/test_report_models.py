"""The report's models: curves, the table of an evaluation, what a service answered."""

from graftline.pipelines.report_models import curves, evaluation, json_lines, transcript


def found(run, name):
    done = run.write()
    return done.line(name), done.opened(done.line(name))


def test_curves_are_by_stage_and_losses_stand_together(quickstart):
    (stage,) = curves(quickstart.stages, [], quickstart.metrics)
    assert stage["name"] == "Train"
    assert [(chart["title"], chart["names"]) for chart in stage["charts"]] == [
        ("loss", ["loss", "eval loss"]), ("tokens per second", ["tokens per second"]),
    ]  # fmt: skip


def test_what_is_no_number_or_has_no_step_is_no_curve(quickstart):
    key = quickstart.stages[-1]["key"]
    lines = [{"key": key, "step": 1, "note": "text", "flag": True}, {"key": key, "loss": 1.0}, {"key": "", "step": 1}]
    assert curves(quickstart.stages, [], lines) == []


def test_an_evaluation_is_a_table_with_gains_and_confusion(quickstart):
    table = evaluation(*found(quickstart, "Compare"))
    assert table["columns"] == ["base", "tickets"]
    base, tuned = table["rows"][0]["cells"]
    assert (base["value"], base["extra"]) == (0.0, {"truncated": 61}) and tuned["gain"]["value"] == 0.853
    assert tuned["extra"] == {} and 'cx="' in tuned["svg"]
    confusion = table["confusion"]
    assert confusion["column"] == "tickets" and confusion["labels"][-1] == "(unparsed)"
    cells = [(line["reference"], cell) for line in confusion["lines"] for cell in line["cells"]]
    counts = {(reference, cell["label"]): cell["count"] for reference, cell in cells}
    assert counts["billing", "billing"] == 12 and counts["delivery", "technical"] == 1
    assert counts["account", "billing"] == 0


def test_a_value_that_is_missing_is_no_number(quickstart):
    line = quickstart.stages[-2]
    missing = {"base": {"value": None, "n": 0}, "tickets": {"value": 12.5, "n": 3, "ci_low": 9.0, "ci_high": 20.0}}
    quickstart.file(line, "report.json", {"columns": ["base", "tickets"], "metrics": {"perplexity": missing}})
    base, tuned = evaluation(*found(quickstart, "Compare"))["rows"][0]["cells"]
    assert base["svg"] == "" and base["value"] is None and tuned["value"] == 12.5


def test_a_transcript_keeps_questions_and_answers(quickstart):
    exchanges = transcript(*found(quickstart, "Service"))["exchanges"]
    assert [exchange["status"] for exchange in exchanges] == [200, 404]
    assert exchanges[0]["messages"][-1]["content"].startswith("parcel") and exchanges[0]["rest"] == {"model": "tickets"}


def test_the_line_a_kill_cut_short_is_left_out():
    assert json_lines('{"step": 1}\n{"step": 2, "lo') == [{"step": 1}]
    assert json_lines("[1]\n\n3\n") == []
