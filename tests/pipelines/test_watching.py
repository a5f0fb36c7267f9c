"""A run's display: what is printed meanwhile, and which errors came after a start."""

import pytest

from graftline.pipelines.guarded import Started
from graftline.pipelines.runner import Event
from graftline.pipelines.watching import display, latest_id
from graftline.stages.errors import InvalidField


def test_prints_go_to_stderr_while_it_is_shown(capsys):
    with display():
        print("noise")
    print("answer")
    out, error = capsys.readouterr()
    assert out == "answer\n" and "noise" in error


@pytest.mark.parametrize("kind", ["planned", "cached", "started"])
def test_an_error_after_a_start_says_so(kind):
    raised = Started if kind == "started" else InvalidField
    with pytest.raises(raised, match="wrong"), display() as watch:
        watch(Event(kind, "stage", "Train"))
        raise InvalidField("wrong")


def test_the_latest_run(quickstart):
    assert latest_id(quickstart.write().store) == quickstart.id
