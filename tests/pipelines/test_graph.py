from typing import Annotated

import pytest

from graftline.pipelines.artefacts import Artefacts
from graftline.pipelines.graph import Graph, Known, roots_of
from graftline.pipelines.pins import OutsidePins
from graftline.pipelines.store import Store
from graftline.stages import Adapter, Llm, Mapper, Model, Rows, Scorer, Selector, Source, Stage, View, select
from graftline.stages.errors import InvalidField
from graftline.stages.specification import Template


class Lines(Source):
    """Rows."""


class Same(Mapper):
    """Changes nothing."""


class Length(Scorer):
    adds = {"length": "int64"}


class Judge(Scorer):
    adds = {"judged": "float64"}
    calls_model = True


class Twice(Scorer):
    """Reads its rows through two fields."""

    adds = {"twice": "int64"}
    others: Rows


class Split(Selector):
    views = ("train", "test")


class Tuned(Stage):
    makes = "adapter"
    model: Model
    rows: Rows


class Report(Stage):
    makes = "report"
    adapter: Adapter
    rows: Rows


class Hiding(Scorer):
    """Reads a hidden stage."""

    adds = {"hidden": "int64"}

    def expand(self):
        return {"same": Same(rows=self.rows)}


def fused(*roots):
    graph = Graph.of({str(number): root for number, root in enumerate(roots)})
    return {graph.stages[key].name: reader.name for key, reader in graph.fused.items()}


def test_what_is_fused():
    assert fused(Length(rows=Same(rows=Lines()))) == {"Same": "Length"}
    assert fused(Judge(rows=Length(rows=Same(rows=Lines())))) == {"Same": "Length", "Length": "Judge"}


def test_what_is_not_fused():
    same = Same(rows=Lines())
    assert fused(Length(rows=Judge(rows=Lines()))) == {}, "rows are written after a stage that calls a model"
    assert fused(select.TopK(rows=Length(rows=Lines()), by="length", k=1)) == {}, "and before a barrier"
    assert fused(Length(rows=same), same) == {}, "and where they are a result"
    assert fused(Length(rows=same), Judge(rows=same)) == {}, "and where the graph forks"
    assert fused(Twice(rows=same, others=same)) == {} == fused(Twice(rows=Lines(), others=same))
    assert fused(Hiding(rows=same)) == {}
    assert fused(Tuned(model=Llm("tiny"), rows=same)) == {}, "and where a stage of another kind reads"


def test_every_stage_comes_after_what_it_reads():
    split = Split(rows=Hiding(rows=Lines()))
    graph = Graph.of({"a": View(of=split, part="train"), "b": View(of=split, part="test")})
    names = [stage.name for stage in graph.stages.values()]
    assert sorted(names) == ["Hiding", "Lines", "Same", "Split", "Split.test", "Split.train"]
    assert (
        names.index("Lines")
        < names.index("Same")
        < names.index("Hiding")
        < names.index("Split")
        < names.index("Split.test")
    )


def test_what_a_consumer_of_an_adapter_needs():
    tuned = Tuned(model=Llm("tiny"), rows=Lines())
    graph = Graph.of({"": Report(adapter=tuned, rows=Lines())})
    (report,) = graph.roots.values()
    assert graph.bases[report.key] == [Llm("tiny")] and Llm("tiny") not in graph.reads[report.key]
    nested = Tuned(model=tuned, rows=Lines())
    assert Graph.of({"": nested}).bases[nested.key] == [Llm("tiny")]


class Varying(Stage):
    """Holds a pattern."""

    makes = "adapter"
    inside: Annotated[Stage, Template]


def test_a_pattern_is_not_run_but_its_code_counts(tmp_path):
    varying = Varying(inside=Tuned(model=Llm("tiny"), rows=Lines()))
    graph = Graph.of({"": varying}).fingerprinted(OutsidePins(str(tmp_path)))
    assert list(graph.stages.values()) == [varying]
    known = Known(Artefacts(Store(str(tmp_path))))
    whole = known.identity(graph, [varying]).source
    other = Varying(inside=Llm("tiny"))
    alone = known.identity(Graph.of({"": other}).fingerprinted(OutsidePins(str(tmp_path))), [other]).source
    assert len({whole, alone}) == 2, "the pattern's own classes are part of the code"


def test_what_a_pipeline_may_be(tmp_path):
    assert roots_of(Lines()) == {"result": Lines()} == roots_of(lambda: Lines()) and list(roots_of({"x": Lines()})) == [
        "x"
    ]
    for wrong in (3, {}, {"x": 3}, [Lines()], Lines):
        with pytest.raises(InvalidField, match="a pipeline is"):
            roots_of(wrong)
    with pytest.raises(InvalidField, match=r"makes several parts.*\.train, \.test"):
        roots_of(Split(rows=Lines()))


def test_the_identity_of_a_chain_looks_through_it(tmp_path):
    first = Same(rows=Lines())
    graph = Graph.of({"": Length(rows=first)}).fingerprinted(OutsidePins(str(tmp_path)))
    (root,) = graph.roots.values()
    known = Known(Artefacts(Store(str(tmp_path))))
    assert [stage.name for stage in known.chain(graph, root)] == ["Same", "Length"]
    assert known.identity(graph, known.chain(graph, root)) is None, "its input is not known yet"

    class Opened:
        digest = "d" * 64

    known.found[graph.fingerprint(first.rows)] = Opened()
    identity = known.identity(graph, known.chain(graph, root))
    assert identity.parents == ((graph.fingerprint(first.rows), "d" * 64),) and identity.stage == "Length"
    assert len(identity.source) == 64, "the code of both classes, which Graftline does not ship"
    known.found[graph.fingerprint(first)] = Opened()
    assert [stage.name for stage in known.chain(graph, root)] == ["Length"]
    assert known.identity(graph, [root]).parents == ((graph.fingerprint(first), "d" * 64),)
