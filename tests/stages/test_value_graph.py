"""Graphs: fingerprints, replacing a stage, JSON, and that none of it takes long."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField, UnknownStage, WrongKind
from graftline.stages.shapes import Source
from graftline.stages.stage import Resources, Stage, View
from graftline.stages.value_graph import fingerprints, from_json, inputs, replace, to_json, walk

from .conftest import CLASSES, Both, Brain, Fit, Knob, Length, Lines, Parts, Pick, Raw, chain, fingerprint


@given(n=st.integers(), share=st.floats(allow_nan=False, allow_infinity=False), tags=st.lists(st.text(), max_size=3))
def test_json_and_pickle_round_trip(n: int, share: float, tags: list[str]) -> None:
    stage = Fit(model=Brain(), rows=Both(rows=(chain(n=n, share=share, tags=tags), Lines()), named={"x": Lines(n=n)}))
    table = json.loads(json.dumps(to_json({"result": stage})))
    assert from_json(table, CLASSES) == {"result": stage}
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert stage.model_dump()["stages"] == table["stages"]


@given(first=st.integers(0, 3), second=st.integers(0, 3), share=st.sampled_from([0.1, 0.2]), port=st.integers(1, 9))
def test_fingerprint_follows_semantic_fields_through_any_nesting(
    first: int, second: int, share: float, port: int
) -> None:
    def build(n: int, share: float, port: int) -> Stage:
        deep = Length(rows=Lines(n=n, share=share, port=port))
        return Fit(model=Brain(), rows=Both(rows=(Lines(),), named={"x": deep}), knob=Knob(start=deep))

    same = fingerprint(build(first, 0.1, 80)) == fingerprint(build(second, share, port))
    assert same == (first == second and share == 0.1)


def test_an_added_field_at_its_default_leaves_the_fingerprint() -> None:
    assert fingerprint(Lines(later=7)) == fingerprint(Lines())
    assert fingerprint(Lines(later=8)) != fingerprint(Lines())


def test_a_label_and_resources_are_not_semantic() -> None:
    assert fingerprint(Lines(label="a", resources=Resources(cpus=2.0), max_failed=0.5)) == fingerprint(Lines())


def test_pins_stand_for_the_outside() -> None:
    class Path(Source):
        path: str

        def pins(self, resolve: Any) -> dict[str, str]:
            return {"path": resolve.file(self.path)}

    class Same(Raw):
        def file(self, path: str) -> str:
            return "one content"

    one, two = Path(path="a"), Path(path="b")
    assert fingerprints([one], Raw())[one.key] != fingerprints([two], Raw())[two.key]
    assert fingerprints([one], Same())[one.key] == fingerprints([two], Same())[two.key]


def test_fingerprints_are_stable_across_processes() -> None:
    code = (
        "from graftline.stages import Source, select\n"
        "from graftline.stages.value_graph import fingerprints\n"
        "class Lines(Source):\n    n: int = 1\n    tags: dict[str, int] = {}\n"
        "stage = select.Concat(rows=(Lines(tags={'b': 1, 'a': 2}), Lines(n=2)))\n"
        "print(fingerprints([stage], None)[stage.key])\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1 and found != {""}


def test_replace_by_path_and_by_stage() -> None:
    lines = Lines()
    root = Fit(model=Brain(), rows=Pick(rows=Length(rows=lines)), knob=Knob(start=lines))
    assert replace(root, "rows.by", "length") == root
    deep = root.replace("rows.rows.rows.n", 5)
    assert [node.n for node in walk(deep) if isinstance(node, Lines)] == [5]  # both places, one stage
    assert root.replace((lines, "n"), 5) == deep
    assert root.replace("knob.rank", 8).knob == Knob(rank=8, start=lines)
    assert root.replace("knob.start.n", 5) == deep
    assert root.rows.rows.rows is lines  # the old value is untouched


def test_replace_through_containers_and_views() -> None:
    parts = Parts(rows=Lines())
    root = Both(rows=(View(of=parts, part="left"),), named={"right": View(of=parts, part="right")})
    changed = root.replace((parts, "rows"), Lines(n=9))
    assert {node.n for node in walk(changed) if isinstance(node, Lines)} == {9}
    assert len([node for node in walk(changed) if isinstance(node, Parts)]) == 1
    assert root.replace("named.right.part", "left").named["right"].part == "left"
    assert root.replace("rows.0.of.rows.n", 9) == changed


def test_replace_in_a_whole_pipeline() -> None:
    lines = Lines()
    pipeline = {"one": Length(rows=lines), "two": Pick(rows=Length(rows=lines))}
    changed = replace(pipeline, "one.rows.n", 5)
    assert {node.n for node in walk(*changed.values()) if isinstance(node, Lines)} == {5}, "wherever it occurs"
    assert replace(pipeline, (lines, "n"), 5) == changed and set(changed) == {"one", "two"}
    with pytest.raises(InvalidField, match="one: names a whole stage"):
        replace(pipeline, "one", lines)
    with pytest.raises(InvalidField, match=r"three\.n: dict has no 'three'"):
        replace(pipeline, "three.n", 1)


def test_replace_says_what_is_wrong_with_the_full_path() -> None:
    root = Fit(model=Brain(), rows=chain())
    with pytest.raises(InvalidField, match=r"rows\.rows\.rows\.n.*integer"):
        root.replace("rows.rows.rows.n", "3")
    with pytest.raises(InvalidField, match=r"rows\.rows\.budget.*Length has no 'rows'|Length has no 'budget'"):
        root.replace("rows.rows.budget", 3)
    with pytest.raises(WrongKind, match=r"rows.*takes rows"):
        root.replace("rows", Brain())
    with pytest.raises(UnknownStage, match="does not occur"):
        root.replace((Lines(n=99), "n"), 3)


def test_inputs_are_found_in_plugs_and_containers() -> None:
    held = Lines(n=5)
    stage = Fit(model=Brain(), rows=Lines(), knob=Knob(start=held))
    assert set(inputs(stage)) == {Brain(), Lines(), held}


def test_thirty_stacked_diamonds_take_under_a_second() -> None:
    begin = time.process_time()

    def stacked() -> Stage:
        node: Stage = Lines()
        for _ in range(30):
            node = Both(rows=(node, Both(rows=(node,))))
        return node

    one, two = stacked(), stacked()
    assert one == two and hash(one) == hash(two) and "Both" in repr(one)
    assert from_json(to_json({"r": one}), CLASSES)["r"] == one
    assert fingerprint(one) == fingerprint(two) and one.replace((Lines(), "n"), 2) != one
    assert time.process_time() - begin < 1


def test_a_chain_of_two_thousand_takes_under_a_second() -> None:
    begin = time.process_time()
    node: Stage = Lines()
    for _ in range(2000):
        node = Both(rows=(node,))
    assert from_json(json.loads(json.dumps(to_json({"r": node}))), CLASSES)["r"] == node
    assert pickle.loads(pickle.dumps(node)) == node
    assert fingerprint(node) and node.replace((Lines(), "n"), 2) != node
    assert time.process_time() - begin < 1


def test_json_of_an_unknown_class_is_refused() -> None:
    table = to_json({"r": Lines()})
    with pytest.raises(UnknownStage, match="no stage class"):
        from_json(table)
    entry = next(iter(table["stages"].values()))
    with pytest.raises(UnknownStage, match="version"):
        from_json({**table, "stages": {"k": {**entry, "version": 2}}}, CLASSES)
    for name in ("os.system", "graftline.stages.stage.walk", "graftline.stages.nowhere.X"):
        with pytest.raises(UnknownStage):
            from_json({**table, "stages": {"k": {**entry, "class": name}}}, CLASSES)
