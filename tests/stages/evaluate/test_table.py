"""Rows as examples, and the tables of a report."""

from graftline.stages.evaluate.metric import Example, Prediction
from graftline.stages.evaluate.table import confusion, examples_of, faults, finite, flat, shown


def test_prompts_end_before_the_answer_and_rows_without_one_are_left_out(rows):
    table = rows(
        [
            {"id": "1", "text": "no signal", "answer": "network", "group": "g"},
            {"id": "2", "text": "?", "answer": None},
            {"id": "3", "text": "?", "answer": " "},
        ]
    )
    assert examples_of(table) == [Example("1", ({"role": "user", "content": "no signal"},), "network", "g")]


def test_a_prompt_as_people_read_it():
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "no signal"}
    assert shown((system, user)) == "no signal"
    again = {"role": "assistant", "content": "Where?"}
    assert shown((system, user, again, user)) == "user: no signal\nassistant: Where?\nuser: no signal"


def test_faults_are_counted_by_cause():
    found = faults([Prediction("a", "a"), Prediction("", "", "empty"), *[Prediction("x", "", "truncated")] * 2])
    assert found == {"unparsed": 3, "empty": 1, "truncated": 2}
    assert faults([Prediction("a", "a")]) == {"unparsed": 0}


def test_confusion():
    examples = [Example(str(index), (), reference, "g") for index, reference in enumerate("aab")]
    found = confusion([Prediction("A", "a"), Prediction("b", "b"), Prediction("", "", "empty")], examples)
    assert found == {"a": {"a": 1, "b": 1}, "b": {"(empty)": 1}}


def test_json_has_no_nan():
    assert finite({"a": [1.0, float("nan")], "b": (float("inf"), "nan", None, 3, True)}) == {
        "a": [1.0, None], "b": [None, "nan", None, 3, True],
    }  # fmt: skip


def test_flat_metrics_end_in_the_last_column():
    cells = {"base": {"value": 0.1}, "tickets": {"value": 0.8}}
    assert flat({"exact_match": cells}) == {
        "exact_match/base": 0.1, "exact_match/tickets": 0.8, "exact_match": 0.8,
    }  # fmt: skip
