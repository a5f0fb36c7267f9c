"""Which fields a sweep varies, by which names, and the rows that its trials are compared on."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages import sweep, train
from graftline.stages.errors import InvalidField
from graftline.stages.sweep import swept

ONE = sweep.grid(1, 2)


def test_a_field_has_its_owner_and_the_path_from_there(pipe: Any) -> None:
    over = {"knob.rank": ONE, (pipe.chosen, "k"): ONE, "held_out.of.seed": ONE}
    found = {each.name: (each.owner, each.path) for each in swept.swept_fields(pipe.tuned, over)}
    assert found == {
        "First.k": (pipe.chosen, ("k",)),
        "held_out.of.seed": (pipe.split, ("seed",)),
        "knob.rank": (pipe.tuned, ("knob", "rank")),
    }


def test_fields_come_by_their_stages_place_and_not_by_how_they_are_written(pipe: Any) -> None:
    """What is drawn for a field depends on its place: it must be the same however the sweep was written down."""

    def names(*over: Any) -> list[str]:
        return [each.name for each in swept.swept_fields(pipe.tuned, dict.fromkeys(over, ONE))]

    assert names("steps", "knob.rank", (pipe.chosen, "k")) == ["First.k", "knob.rank", "steps"]
    assert names((pipe.chosen, "k"), "knob.rank", "steps") == ["First.k", "knob.rank", "steps"]


def test_equal_names_are_told_apart(pipe: Any, parts: Any) -> None:
    first, second = parts.First(rows=pipe.split.train, k=3), parts.First(rows=pipe.split.train, k=4)
    root = pipe.tuned.replace("rows", parts.Both(rows=(first, second)))
    names = [each.name for each in swept.swept_fields(root, {(first, "k"): ONE, (second, "k"): ONE})]
    assert names == ["First.k 0", "First.k 1"]


def test_a_field_within_another_is_refused_in_either_order(pipe: Any) -> None:
    for over in (("knob", "knob.rank"), ("knob.rank", "knob")):
        with pytest.raises(InvalidField, match=r"knob\.rank is swept, and so is knob"):
            swept.swept_fields(pipe.tuned, dict.fromkeys(over, ONE))
    both = swept.swept_fields(pipe.tuned, {"knob.rank": ONE, "knob.lr": ONE})
    assert len(both) == 2, "two fields of one plug are no part of one another"


@pytest.mark.parametrize("path", ["label", "workers", "resources"])
def test_what_says_how_a_stage_runs_is_no_field_to_vary(pipe: Any, path: str) -> None:
    with pytest.raises(InvalidField, match=f"{path} says how a stage runs"):
        swept.swept_fields(pipe.tuned, {path: ONE})


def test_trials_are_judged_by_the_held_out_rows_as_they_are_measured(pipe: Any) -> None:
    assert set(swept.judged_by(pipe.tuned).values()) == {pipe.split.dev}
    tuned = train.Train(model=pipe.student, rows=pipe.split.train, held_out=pipe.split.dev)
    prepared = [each for each in swept.judged_by(tuned).values() if each != pipe.split.dev]
    assert [type(each).__name__ for each in prepared] == ["Tokenised"], "their tokens, and not the training rows'"
    assert swept.judged_by(tuned.replace("max_length", 77)).keys() != swept.judged_by(tuned).keys()
    assert swept.judged_by(tuned.replace("held_out", None)) == {}


def test_of_a_report_it_is_the_rows_it_reads(pipe: Any) -> None:
    assert set(swept.judged_by(pipe.report).values()) == {pipe.split.dev}


def test_parts_named_test_are_found_however_far_above(pipe: Any, parts: Any) -> None:
    far = parts.First(rows=parts.First(rows=parts.First(rows=pipe.split.test)), k=1)
    assert list(swept.test_parts([far, pipe.split.dev])) == [pipe.split.test]
    assert list(swept.test_parts([pipe.split.dev, pipe.chosen])) == []
