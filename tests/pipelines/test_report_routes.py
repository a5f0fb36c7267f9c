"""The report's routers: where prompts went, and plain words where there is nothing to choose."""

from graftline.pipelines import report
from graftline.pipelines.report_routes import router, tradeoff

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


TRADEOFF = {
    "prompts": 1200,
    "always": [
        {"target": "large", "cost": 0.4, "quality": 0.8},
        {"target": "small", "cost": 0.1, "quality": 0.6},
    ],
    "routed": {
        "mu": [0.0, 0.3, 0.9], "cost": [0.3, 0.2, 0.1], "quality": [0.82, 0.75, 0.6],
        "shares": {"large": [0.7, 0.4, 0.0], "small": [0.3, 0.6, 1.0]},
    },
    "own": {"mu": 0.4, "cost": 0.2, "quality": 0.75},
    "area": {"routed": 0.75, "line": 0.7},
    "above_line": {"value": 0.05, "n": 1200, "ci_low": 0.03, "ci_high": 0.07},
    "intervals": "95 %, so and so",
}  # fmt: skip


def test_what_routing_yields_stands_beside_each_target_alone(quickstart):
    line = quickstart.stage("NearestNeighbours", "report")
    quickstart.file(line, "report.json", {"targets": ["large", "small"], "tradeoff": TRADEOFF})
    done = quickstart.write()
    line = done.line("NearestNeighbours")
    told = tradeoff(line, done.opened(line))
    routed = {line["mu"]: line for line in told["lines"] if not line["alone"]}
    assert {mu: line["cost"] for mu, line in routed.items()} == {
        0: 0.3,
        0.25: 0.3,
        0.4: 0.2,
        0.5: 0.2,
        0.75: 0.2,
        1: 0.1,
    }
    assert (routed[0.4]["shares"], routed[1.0]["shares"]) == ({"large": 0.4, "small": 0.6}, {"small": 1.0})
    assert [line["cost"] for line in told["lines"]] == sorted(line["cost"] for line in told["lines"])
    text = report.render(done.record, done.opened).split('id="routing"')[1].split("<h2")[0]
    assert "choices is 0.750, on the line" in text and "single targets 0.700: +0.050 (+0.030 to +0.070" in text
    assert "always <b>large</b>" in text and "mu = 0.4 <small>as it is set" in text
    assert 'href="#routing"' in report.render(done.record, done.opened)


def test_a_router_that_could_be_compared_on_nothing_has_no_section(quickstart):
    line = quickstart.stage("NearestNeighbours", "report")
    quickstart.file(line, "report.json", {"targets": ["large", "small"], "tradeoff": {"prompts": 0}})
    done = quickstart.write()
    assert 'id="routing"' not in report.render(done.record, done.opened)
