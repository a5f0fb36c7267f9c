"""A requirement holds or says by how much it does not."""

import json

import pyarrow.fs as fs
import pytest

from graftline.stages import Stage, evaluate
from graftline.stages.artefact import Artefact
from graftline.stages.errors import RequirementUnmet


class Reported(Stage):
    makes = "report"


@pytest.fixture
def report(tmp_path):
    def make(value):
        cell = {"value": value, "n": 77, "ci_low": 0.61, "ci_high": 0.83}
        (tmp_path / "report.json").write_text(json.dumps({"metrics": {"exact_match": {"tickets": cell}}}))
        return Artefact({"metrics": {"exact_match/tickets": value}}, fs.LocalFileSystem(), str(tmp_path))

    return make


def requirement(least):
    figure = evaluate.Figure(report=Reported(label="test tickets"), name="exact_match/tickets")
    return evaluate.Requirement(figure=figure, least=least)


def test_it_holds(report):
    requirement(0.73).hold(report(0.73))


def test_it_does_not_hold_and_gives_the_figures(report):
    with pytest.raises(RequirementUnmet) as caught:
        requirement(0.8).hold(report(0.73))
    assert str(caught.value).startswith(
        "test tickets: exact_match of tickets is 0.730 (n=77, 95 % 0.610 to 0.830), at least 0.8 is required"
    )


@pytest.mark.parametrize("value", [float("nan"), None])  # a store keeps what is no number as null
def test_nan_never_holds(report, value):
    with pytest.raises(RequirementUnmet):
        requirement(0.0).hold(report(value))
