"""Rows that are not there yet: how numbers, samples and what is known of them go together."""

import pytest

from graftline.stages.expected import (
    SAMPLE,
    Expected,
    Usage,
    Volume,
    answered,
    product,
    prompt_turns,
    spread,
    together,
    turns_of,
    unanswered,
    worst,
)


def rows(count, label="x"):
    return tuple(
        {"messages": [{"role": "user", "content": f"{label} {number}"}], "n": number} for number in range(count)
    )


def test_usage_adds_up_and_what_is_not_known_stays_unknown():
    one = Usage(3, 100, 30, money=0.5)
    assert one + Usage(2, tokens_scored=7, mark="~") == Usage(5, 100, 30, 7, money=0.5, mark="~")
    assert (one + Usage(None)).requests is None and (one + Usage(None)).tokens_in == 100
    assert one.times(2.5, "<=") == Usage(8, 250, 75, money=1.25, mark="<=") and Usage(None).times(2).requests is None
    assert list(one.to_dict()) == ["requests", "tokens_in", "tokens_out", "tokens_scored", "tokens_trained", "money"]


def test_marks_and_products():
    assert worst() == worst("", "") == "" and worst("", "~") == "~" and worst("<=", "~") == "<="
    assert product(3, 0.5) == 2 and product(None, 2) is None and product(None, 0) == 0 and product(0.1 * 3, 10) == 3


def test_a_volume_is_measured_by_its_sample():
    volume = Volume(1000, rows(10))
    assert volume.mean(lambda row: row["n"]) == 4.5 and volume.total(lambda row: row["n"]) == 4500
    assert Volume(5).total(lambda row: 1) is None and Volume(0).total(lambda row: 1) == 0
    assert volume.at_most(40) == Volume(40, volume.sample) and Volume(3, mark="~").at_most(40) == Volume(3, mark="~")
    assert volume.at_most(40, "~").mark == "~" and Volume().at_most(40).count is None and volume.at_most(None) == volume
    half = volume.only(lambda row: row["n"] < 5)
    assert (half.count, half.mark, len(half.sample)) == (500, "~", 5) and volume.only(lambda row: True) == volume
    assert volume.share(0.25, "<=") == Volume(250, volume.sample, "<=")


def test_labels_are_few_and_texts_many():
    volume = Volume(1000, rows(10))
    assert volume.distinct(lambda row: row["n"] % 3) == 3, "as many as in the sample"
    assert volume.distinct(lambda row: row["n"]) == 1000 and volume.distinct(lambda row: min(row["n"], 7)) == 800
    assert volume.groups(lambda row: row["n"] // 2) == 500 and Volume(4).groups(id) is None
    assert Volume(2, rows(10)).distinct(lambda row: row["n"] % 3) == 2 and Volume(7).distinct(id) == 7


def test_several_are_sampled_by_their_sizes():
    both = together([Volume(300, rows(100, "a")), Volume(100, rows(100, "b"), "~")])
    assert (both.count, both.mark, len(both.sample)) == (400, "~", SAMPLE)
    assert sum(row["messages"][0]["content"].startswith("a") for row in both.sample) == SAMPLE * 3 // 4
    assert together([Volume(3), Volume()]).count is None and together([]) == Volume(0)
    assert Expected({"a": Volume(3), "b": Volume(4, mark="~")}).volume == Volume(7, (), "~")
    assert [row["n"] for row in spread(rows(10), 3)] == [0, 3, 6] and len(spread(rows(2), 3)) == 2


@pytest.mark.parametrize("answer", [None, "yes"])
def test_rows_with_and_without_an_answer(answer):
    turns = [{"role": "user", "content": "well?"}, *([{"role": "assistant", "content": answer}] if answer else [])]
    row = {"messages": turns, "answer": answer}
    assert turns_of(unanswered(row)) == prompt_turns(row) == ({"role": "user", "content": "well?"},)
    written = answered(row, 5)
    assert (
        written["answer"] == "the the the the the" == turns_of(written)[-1]["content"] and len(turns_of(written)) == 2
    )
    assert prompt_turns({"prompt": turns[:1], "chosen": "a"}) == ({"role": "user", "content": "well?"},)
