"""The report's evaluations: every column of every metric, and sentences that say no more than the rows do."""

import itertools
import re

import pytest

from graftline.pipelines.report_evaluation import evaluation, headline, sentence, sentences
from graftline.stages.evaluate.pairs import compared


def found(run, name="Compare"):
    done = run.write()
    return done.line(name), done.opened(done.line(name))


def pair(first, second, right, alone, p=0.5, n=77):
    return {"columns": [first, second], "n": n, "right": list(right), "alone": list(alone), "p": p}


def report(pairs, beyond=()):
    return {"pairs": {"exact_match": pairs}, "beyond": list(beyond)}


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


def test_generated_rows_that_cost_answers_are_said_to():
    """The 40 rows that a model wrote beside the 63 real ones: 62 right instead of 67."""
    more = {"column": "tickets", "of": "seeds", "rows": 40, "made": 40}
    (told,) = sentences(report([pair("seeds", "tickets", (67, 62), (9, 4), 0.27)], [more]), "exact_match")
    assert told == (
        "tickets loses to seeds, 5 of 77 answers fewer right, with 40 more training rows, all of them generated: 0.805"
        " against 0.870; 4 rows only tickets gets right, 9 only seeds: may be chance (McNemar's exact test, p = 0.27)."
    )
    told = report([pair("seeds", "tickets", (62, 67), (1, 6), 0.01)], [{**more, "made": 30}])
    (gained,) = sentences(told, "exact_match")
    assert gained.startswith("tickets beats seeds, 5 of 77 answers more right, with 40 more training rows, 30 of them")
    assert "hardly chance" in gained


def test_the_better_of_two_comes_first_and_equals_are_equal():
    more = {}
    assert sentence(pair("a", "b", (60, 66), (1, 7)), more).startswith("b beats a, 6 of 77 answers more right: 0.857 a")
    assert sentence(pair("a", "b", (66, 60), (7, 1)), more).startswith("a beats b, 6 of 77")
    assert sentence(pair("a", "b", (60, 60), (0, 0), 1.0), more) == (
        "a equals b: 0.779 against 0.779; both are right on the same rows."
    )
    assert "1 row only a gets right" in sentence(pair("a", "b", (60, 60), (1, 1), 1.0), more)
    assert "in groups" in sentence(pair("a", "b", (60, 50), (10, 0), None), more)
    assert "p = below 0.001" in sentence(pair("a", "b", (60, 30), (30, 0), 1e-9), more)


def test_a_base_that_beats_a_tuned_column_is_said_to():
    pairs = [pair("base", "a", (60, 10), (55, 5), 1e-6), pair("base", "b", (60, 70), (1, 11))]
    told = sentences(report(pairs), "exact_match")
    assert len(told) == 1 and told[0].startswith("base beats a: 0.779 against 0.130")


def test_an_old_report_says_nothing(quickstart):
    assert sentences({}, "exact_match") == [] and sentences(report([]), "other") == []
    assert [row["sentences"] for row in evaluation(*found(quickstart))["rows"]] == [[], []]


def test_of_many_columns_one_sentence_says_who_is_as_good_as_the_best():
    """Twenty adapters are 190 pairs: the best is named, those it cannot be told from, and those that are worse."""
    rows = 200
    right = {f"a{place:02}": [row < 180 - 3 * place for row in range(rows)] for place in range(20)}
    told = sentences(report(compared(right, range(rows))), "exact_match")
    assert len(told) == 4
    assert told[0] == "a00 has the most answers right (0.900) of 20 columns."
    assert told[1].startswith("These rows cannot tell it from a01 (0.885)") and "a19" not in told[1]
    assert "a19 (0.615)" in told[2] and "Holm's correction for 19 comparisons" in told[3]
    named = re.findall(r"a\d\d(?= \()", " ".join(told[1:3]))
    assert sorted(named) == sorted(right)[1:], "each column once"
    grouped = sentences(report(compared(right, [0] * rows)), "exact_match")
    assert grouped[-1] == "Rows come in groups, so the columns are not tested against it."


def test_holm_asks_more_of_many_comparisons():
    """p = 0.02 of one pair is a difference; as the smallest of nineteen it is none."""
    names = [f"a{place:02}" for place in range(8)]
    pairs = [pair(one, other, (60, 50), (15, 5), 0.02) for one, other in itertools.combinations(names, 2)]
    for each in pairs:
        each["right"] = [70 if name == "a07" else 60 for name in each["columns"]]
    told = sentences(report(pairs), "exact_match")
    assert not [line for line in told if line.startswith("Worse")] and told[1].count("(0.") == 7


def test_columns_that_answered_alike_share_a_line(quickstart):
    line = quickstart.stages[-2]
    names = ["base", *(f"a{place}" for place in range(7))]
    sample = {"prompt": "?", "reference": "billing", "correct": {name: name != "base" for name in names},
              "answers": {name: "Sorry" if name == "base" else "billing" for name in names}}  # fmt: skip
    quickstart.file(line, "report.json", {"columns": names, "metrics": {}, "samples": [sample] * 9})
    samples = evaluation(*found(quickstart))["samples"]
    assert len(samples) == 6
    assert samples[0]["answers"] == [
        {"text": "Sorry", "correct": False, "columns": "base"},
        {"text": "billing", "correct": True, "columns": "a0, a1, a2, a3, 3 more"},
    ]


def test_the_headline_is_the_base_and_the_best(quickstart):
    line = quickstart.stages[-2]
    values = {"base": 0.1, "a": 0.9, "b": 0.8}
    cells = {name: {"value": value, "n": 77} for name, value in values.items()}
    quickstart.file(line, "report.json", {"columns": list(values), "metrics": {"exact_match": cells, "loss": cells},
                                          "pairs": {"exact_match": []}})  # fmt: skip
    best, last = headline(evaluation(*found(quickstart)))
    assert (best["value"], best["note"]) == ("0.10 → 0.90", "base → a, best of 2, n = 77")
    assert (last["value"], last["note"]) == ("0.10 → 0.80", "base → b, n = 77"), "of a loss nobody says which is better"


def test_a_routers_report_is_no_evaluation(quickstart):
    routed = {"columns": ["all"], "metrics": {"routed_right": {}}, "routes": {}}
    quickstart.file(quickstart.stages[-2], "report.json", routed)
    assert evaluation(*found(quickstart))["rows"] == []


@pytest.mark.parametrize("n", [0, 3])
def test_a_column_without_rows_is_no_division_by_zero(n):
    assert sentences(report([pair("a", "b", (0, 0), (0, 0), None, n)]), "exact_match") == (
        [] if n == 0 else ["a equals b: 0.000 against 0.000; both are right on the same rows."]
    )
