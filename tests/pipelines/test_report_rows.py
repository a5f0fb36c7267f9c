"""The report's rows: no row is left out of the funnel, scores are found where they first appear."""

import pytest

from graftline.pipelines.report_rows import funnel, generated, histograms


def made(run):
    done = run.write()
    lines = [line for line in done.record["stages"] if not line["part"]]
    return {line["name"]: (line, done.opened(line)) for line in lines}


@pytest.mark.parametrize("count", [0, 5, 6, 9])
def test_every_row_is_in_the_funnel_and_rare_reasons_are_summed(quickstart, count):
    line = next(line for line in quickstart.stages if line["name"] == "TopK")
    line["rows"]["filtered"] = {f"reason {index}": 10 - index for index in range(count)}
    bars = {bar["name"]: bar for bar in funnel([line for line in quickstart.stages if not line["part"]])}
    bar = bars["TopK"]
    assert sum(part["count"] for part in bar["parts"]) == bar["total"] == 100 + sum(10 - i for i in range(count))
    assert len([part for part in bar["parts"] if part["kind"] == "filtered"]) <= 6
    assert max(sum(part["width"] for part in each["parts"]) for each in bars.values()) == pytest.approx(100)
    assert set(bars) == {"Jsonl", "Split", "SelfInstruct", "Difficulty", "TopK"}


def test_a_score_is_shown_where_it_appears_with_what_was_chosen_in_front(quickstart):
    (chart,) = histograms(list(made(quickstart).values()))
    assert (chart["column"], chart["stage"], chart["count"]) == ("ifd", "Difficulty", 183)
    assert (chart["chosen"], chart["chosen_count"]) == ("TopK", 100)


def test_generated_rows_are_shown_with_those_dropped(quickstart):
    samples = generated(*made(quickstart)["SelfInstruct"])["rows"]
    assert [sample["outcome"] for sample in samples] == ["kept"] * 4 + ["filtered", "failed"]
    assert samples[-1]["reason"] == "the label was not found in the answer"
    assert generated(*made(quickstart)["Split"])["rows"] == []
