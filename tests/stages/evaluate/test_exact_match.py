"""Exact match: how it asks, what parses, what is right."""

import pytest

from graftline.stages import evaluate
from graftline.stages.errors import EngineFailed
from graftline.stages.evaluate.metric import Asked, Example, Prediction

LABELS = ("billing", "Home network", "C#")


@pytest.mark.parametrize(
    ("text", "finish", "label", "fault"),
    [
        ("billing", "stop", "billing", ""),
        (" Billing.\n", "stop", "billing", ""),
        ("home NETWORK", "stop", "Home network", ""),
        ("C#.", "stop", "C#", ""),
        ("C", "stop", "", "not_a_label"),
        ("billing\nbilling", "stop", "", "not_a_label"),
        ("The queue is billing", "stop", "", "not_a_label"),
        ("billing or home network", "stop", "", "not_a_label"),
        ("", "stop", "", "empty"),
        (" \n", "stop", "", "empty"),
        ("...", "stop", "", "not_a_label"),
        ("billing", "length", "", "truncated"),
        ("", "length", "", "truncated"),
    ],
)
def test_the_whole_answer_is_a_label_or_it_is_counted(text, finish, label, fault):
    assert evaluate.ExactMatch.parsed(text, finish, LABELS) == Prediction(text, label, fault)


def test_a_cancelled_answer_is_no_answer():
    with pytest.raises(EngineFailed, match="cancelled"):
        evaluate.ExactMatch.parsed("bil", "cancelled", LABELS)


@pytest.mark.parametrize(
    ("label", "reference", "right"),
    [("billing", "Billing.", True), ("billing", "outage", False), ("", "billing", False), ("", "", False)],
)
def test_right_is_the_same_label(label, reference, right):
    example = Example("1", (), reference, "g")
    assert evaluate.ExactMatch().correct(Prediction("any", label), example) is right


def test_it_asks_greedily_for_the_longest_label_and_four_tokens(table_engine):
    engine = table_engine({("queues", "a"): ("billing", "stop"), ("queues", "b"): ("C#", "length")}, None)
    examples = [Example(text, ({"role": "user", "content": text},), "billing", text) for text in "ab"]
    ticks = []
    longest = lambda texts: max(map(len, texts))  # noqa: E731
    asked = Asked(engine, "queues", LABELS, longest, ticks.append)
    metric = evaluate.ExactMatch()
    found = metric.predict(asked, examples)
    assert [(one.label, one.fault) for one in found] == [("billing", ""), ("", "truncated")]
    assert ticks == [1, 1]
    for request in engine.requests:
        assert request.adapter == "queues"
        assert (request.sampling.temperature, request.sampling.max_new_tokens) == (0.0, len("Home network") + 4)
        assert request.sampling.stop == ()
    assert metric.decoding(asked)["max_new_tokens"] == len("Home network") + 4
