"""The report's cost: every stage once, trials apart, plans beside what happened."""

import pytest

from graftline.pipelines.report_cost import beside_plan, cost


def stage(name, seconds=1.0, requests=0, **more):
    calls = {"requests": requests, "tokens_in": 10 * requests, "tokens_out": requests} if requests else {}
    return {"name": name, "status": "ran", "seconds": seconds, "calls": calls, "part": "", **more}


def test_what_a_sweep_waited_for_counts_once():
    """Sixty seconds of sweep hold its two trials' twenty-five each; their tokens are nobody else's."""
    lines = [stage("Draft", 5.0, 7), stage("Sweep", 60.0)]
    lines += [stage(f"trial {place}", 25.0, 3, asked_by="sweep") for place in range(2)]
    found = cost(lines)
    assert found["total"]["seconds"] == 65.0 and found["total"]["requests"] == 13
    assert [line["name"] for line in found["lines"]] == ["Draft", "Sweep"]
    assert [line["name"] for line in found["asked"]] == ["trial 0", "trial 1"]
    assert found["slowest"] == 60.0


def test_what_has_not_started_and_views_cost_nothing():
    found = cost([stage("Split.train", part="train"), stage("Train", None, status="pending")])
    assert found["lines"] == [] and found["total"]["seconds"] == 0 and found["slowest"] == 1


def test_money_where_there_is_some():
    assert not cost([stage("Draft", requests=3)])["money"]
    paid = stage("Draft", requests=3)
    paid["calls"]["money"] = 0.25
    found = cost([paid, stage("Judge", requests=1)])
    assert found["money"] and found["total"]["money"] == pytest.approx(0.25)


@pytest.mark.parametrize(("status", "told"), [("ran", "of 130"), ("cached", "")])
def test_a_plan_stands_beside_what_ran(status, told):
    planned = {"rows": 80, "requests": 130, "tokens_in": None, "tokens_out": 0}
    found = cost([stage("Draft", requests=122, planned=planned, status=status)])
    (line,) = found["lines"]
    assert beside_plan(line, "requests") == told and found["planned"] == bool(told)
    assert beside_plan(line, "tokens_in") == beside_plan(line, "tokens_out") == "", "it said nothing of these"
