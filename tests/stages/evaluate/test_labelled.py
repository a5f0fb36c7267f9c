"""Labels that are named, and what cannot be one."""

import pytest

from graftline.stages import evaluate
from graftline.stages.errors import InvalidField
from graftline.stages.evaluate.metric import Example


def examples(*answers):
    return [Example(str(index), ({"role": "user", "content": "?"},), text, "g") for index, text in enumerate(answers)]


def test_choices_are_the_labels():
    assert evaluate.ExactMatch(choices=("b", "a")).labels(examples("x")) == ("b", "a")


@pytest.mark.parametrize("choices", [(), ("a", " "), ("a", "A."), ("a", "a")])
def test_useless_choices_are_refused(choices):
    with pytest.raises(InvalidField, match=r"Choice\.choices"):
        evaluate.Choice(choices=choices)
