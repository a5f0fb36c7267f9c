"""What all metrics share: labels, and an own metric in a few lines."""

from graftline.stages import evaluate
from graftline.stages.evaluate.metric import Asked, Example, Metric, Prediction


def examples(*answers):
    return [Example(str(index), ({"role": "user", "content": "?"},), text, "g") for index, text in enumerate(answers)]


def test_labels_are_the_distinct_answers_in_their_most_frequent_spelling():
    found = evaluate.ExactMatch().labels(examples("Billing", "billing", "outage", "billing", "Outage."))
    assert found == ("Outage.", "billing")  # of two spellings used once each, the first by code point


def test_a_metric_of_ones_own():
    class Length(Metric):
        figure = "short"

        def predict(self, asked, examples):
            return [Prediction(example.reference) for example in examples]

        def correct(self, prediction, example):
            return len(prediction.text) < 3

    metric = Length()
    rows = examples("ab", "abc")
    found = metric.predict(Asked(None, None, (), len), rows)
    assert [metric.correct(*pair) for pair in zip(found, rows, strict=True)] == [True, False]
