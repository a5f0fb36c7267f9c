"""The report's routers: where prompts went, and plain words where there is nothing to choose."""

from graftline.pipelines import report
from graftline.pipelines.report_routes import router

CELLS = {
    "all": {"value": 0.9, "n": 60, "ci_low": 0.8, "ci_high": 0.95},
    "bills": {"value": 0.8, "n": 20, "ci_low": 0.6, "ci_high": 0.9},
    "tickets": {"value": 0.95, "n": 40, "ci_low": 0.85, "ci_high": 0.99},
}
ROUTES = {"bills": {"bills": 16, "tickets": 3, "base": 1}, "tickets": {"tickets": 38, "bills": 2}}


def routed(run, **report):
    line = run.stage("NearestNeighbours", "report")
    run.file(line, "report.json", {"columns": list(CELLS), "metrics": {"routed_right": CELLS}, **report})
    return line


def found(run):
    done = run.write()
    line = done.line("NearestNeighbours")
    return router(line, done.opened(line))


def test_each_target_has_its_prompts_and_where_they_went(quickstart):
    routed(quickstart, routes=ROUTES, targets=["base", "bills", "tickets"])
    told = found(quickstart)
    lines = {line["target"]: line for line in told["targets"]}
    assert told["chooses"] and told["all"]["n"] == 60
    assert (lines["bills"]["prompts"], lines["bills"]["value"], lines["bills"]["sent"]) == (20, 0.8, 18)
    assert [(each["target"], each["count"]) for each in lines["bills"]["elsewhere"]] == [("tickets", 3), ("base", 1)]
    assert (lines["base"]["prompts"], lines["base"]["value"], lines["base"]["sent"]) == (0, None, 1)
    assert sum(line["sent"] for line in told["targets"]) == 60


def test_one_target_is_no_choice_and_no_table(quickstart):
    routed(quickstart, routes={"tickets": {"tickets": 63}}, targets=["tickets"])
    text = report.render(quickstart.write().record, quickstart_opened(quickstart))
    assert "goes to <b>tickets</b>, its only target, known by 63 prompts" in text
    assert "routed right" not in text and "What tickets answered" not in text.split('id="routing"')[1].split("<h2")[0]


def quickstart_opened(run):
    done = run.write()
    return done.opened


def test_what_is_no_router_has_no_section(quickstart):
    line = quickstart.stages[-2]
    done = quickstart.write()
    assert router(line, done.opened(line))["targets"] == []
    assert 'id="routing"' not in report.render(done.record, done.opened)
