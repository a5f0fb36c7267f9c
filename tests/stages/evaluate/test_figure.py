"""One number of a report as a value."""

import pytest

from graftline.stages import Stage, evaluate
from graftline.stages.errors import InvalidField
from graftline.stages.evaluate.figure import Figure
from graftline.stages.value_graph import inputs


class Model(Stage):
    makes = "model"


class Tuned(Stage):
    makes = "adapter"
    seed: int = 0


class Table(Stage):
    makes = "rows"


def compare(*names):
    adapters = {name: Tuned(seed=index) for index, name in enumerate(names)}
    metrics = (evaluate.ExactMatch(), evaluate.Choice())
    return evaluate.Compare(model=Model(), adapters=adapters, rows=Table(), metrics=metrics)


def test_of_the_only_tuned_column():
    report = compare("tickets")
    assert report.metric("exact_match") == Figure(report=report, name="exact_match/tickets")
    assert report.metric("choice", of="base").name == report.metric("choice/base").name == "choice/base"
    assert report.metric("choice").children() == [report]


def test_of_several_columns_one_must_be_named():
    report = compare("a", "b")
    with pytest.raises(InvalidField, match="of which column"):
        report.metric("exact_match")
    assert report.metric("exact_match", of="b").name == "exact_match/b"
    assert report.metric("exact_match/a").name == "exact_match/a"


@pytest.mark.parametrize(("name", "of"), [("rouge", None), ("exact_match", "nobody"), ("exact_match/nobody", None)])
def test_what_the_report_does_not_have(name, of):
    with pytest.raises(InvalidField, match=r"no .* of .*Use one of exact_match, choice of base, tickets"):
        compare("tickets").metric(name, of)


def test_who_holds_a_figure_reads_the_report():
    class Reader(Stage):
        makes = "service"
        requires: tuple[evaluate.Requirement, ...]

    report = compare("tickets")
    assert inputs(Reader(requires=(report.at_least("exact_match", 0.8),))) == [report]
