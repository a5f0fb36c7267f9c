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
from graftline.stages.value_graph import (
    fill,
    fingerprints,
    from_json,
    frontier,
    inputs,
    replace,
    substitute,
    to_json,
    varied,
    walk,
)

from .conftest import (
    CLASSES,
    Both,
    Brain,
    Count,
    Fit,
    Gap,
    Knob,
    Length,
    Lines,
    Parts,
    Pick,
    Raw,
    Varied,
    chain,
    fingerprint,
)


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


# --- mappings whose keys have stages in them, patterns, placeholders ----------------------------------------------

KEYS = st.dictionaries(st.tuples(st.integers(0, 5), st.sampled_from(["n", "share"])), st.integers(0, 9), max_size=6)


def keyed(cells: dict[tuple[int, str], int], label: str = "") -> Varied:
    over = {(Lines(n=n, label=f"{label}{7 * n % 5}" or None), path): value for (n, path), value in cells.items()}
    return Varied(inside=chain(), over={**over, "rows.by": 1})


@given(cells=KEYS)
def test_keys_with_stages_in_them_round_trip(cells: dict[tuple[int, str], int]) -> None:
    stage = keyed(cells)
    table = json.loads(json.dumps(to_json({"result": stage})))
    assert from_json(table, CLASSES) == {"result": stage} and pickle.loads(pickle.dumps(stage)) == stage
    assert keyed(dict(reversed(cells.items()))) == stage, "written in another order, it is the same mapping"
    assert {key: stage.over[key] for key in stage.over} == stage.over and hash(stage.over) == hash(keyed(cells).over)
    assert {node for node in walk(stage) if isinstance(node, Lines) and node != Lines()} <= {
        key[0] for key in stage.over if isinstance(key, tuple)
    }


@given(cells=KEYS, label=st.sampled_from(["", "a", "zz"]))
def test_no_label_moves_the_fingerprint_through_a_mappings_keys(cells: dict[tuple[int, str], int], label: str) -> None:
    """A stage's key sees its label, and mappings are in the order of their keys."""
    assert fingerprint(keyed(cells)) == fingerprint(keyed(cells, label))
    if cells:
        place = next(iter(cells))
        assert fingerprint(keyed(cells)) != fingerprint(keyed({**cells, place: cells[place] + 1}))


@given(cells=KEYS, n=st.integers(6, 9))
def test_stages_in_keys_are_replaced_like_any_other(cells: dict[tuple[int, str], int], n: int) -> None:
    stage = keyed({**cells, (0, "n"): 3})
    old = next(key[0] for key in stage.over if isinstance(key, tuple) and key[0].n == 0)
    new = Lines(n=n)
    for changed in (substitute(stage, {old.key: new}), stage.replace((old, "n"), n).replace((Lines(
            n=n, label=old.label), "label"), None)):  # fmt: skip
        assert changed.over[(new, "n")] == 3 and (old, "n") not in changed.over
        assert len(changed.over) == len(stage.over)


def test_a_pattern_is_no_input() -> None:
    pattern, read = chain(n=3), Lines(n=5)
    stage = Varied(inside=pattern, over={(pattern, "by"): 1}, rows=read)
    assert inputs(stage) == [read] and pattern in stage.children() and pattern not in stage.children(templates=False)
    assert fingerprint(stage) != fingerprint(Varied(inside=chain(n=4), over={}, rows=read))


def test_fields_of_stages_in_a_line_vary_together() -> None:
    lines = Lines()
    picked = Pick(rows=Length(rows=lines))
    root = Fit(model=Brain(), rows=picked, knob=Knob(start=lines))
    now = varied(root, {(lines, "n"): 2, (lines, "share"): 0.25, (root, "knob.rank"): 8, (picked, "by"): "length"})
    new = now[root.key]
    assert new == Fit(
        model=Brain(), rows=Pick(rows=Length(rows=Lines(n=2, share=0.25))),
        knob=Knob(rank=8, start=Lines(n=2, share=0.25)),
    )  # fmt: skip
    assert now[picked.key] == new.rows and now[Brain().key] == Brain()
    with pytest.raises(InvalidField, match=r"^\(Lines, 'n'\).*integer"):
        varied(root, {(lines, "n"): "two"})


def test_a_frontier_is_what_graphs_share() -> None:
    one, other = Lines(n=1), Lines(n=2)
    deep = Length(rows=one)
    roots = [Fit(model=Brain(), rows=Pick(rows=deep), knob=Knob(start=each)) for each in (one, other)]
    assert set(frontier(roots).values()) == {Brain(), roots[0].rows, one}, "the first one reads `one` itself"
    assert set(frontier([*roots[1:], roots[1].replace("knob.rank", 5)], [roots[1].rows]).values()) == {Brain(), other,
           roots[0].rows}  # fmt: skip
    assert set(frontier(roots[:1]).values()) == {Brain(), roots[0].rows, one}
    assert set(frontier([Both(rows=(deep,)), Both(rows=(deep, other))]).values()) == {deep}


def test_placeholders_go_anywhere_and_are_filled() -> None:
    body = Fit(model=Gap(), rows=Pick(rows=Gap()), knob=Knob(rank=Count(times=3)))
    assert body.is_open and not Fit(model=Brain(), rows=Lines()).is_open
    assert from_json(to_json({"b": body}), CLASSES) == {"b": body} == pickle.loads(pickle.dumps({"b": body}))
    assert body != Fit(model=Gap(), rows=Pick(rows=Gap()), knob=Knob(rank=Count(times=4)))
    with pytest.raises(WrongKind, match="takes model, but Length makes rows"):
        fill(body, {Gap().key: Length(rows=Lines()), Count(times=3).key: 5})
    lines = Pick(rows=Gap())
    assert fill(lines, {Gap().key: Length(rows=Lines())}) == chain()
    assert fill(body.knob, {Count(times=3).key: 5}) == Knob(rank=5)
    with pytest.raises(InvalidField, match=r"Lines\.tags"):
        Lines(tags=Count())  # it stands for a whole number
