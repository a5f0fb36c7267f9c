"""Packed log-probabilities are those of one sequence at a time; choices that share a prompt do not see each other."""

import pytest
import torch

from graftline.stages.errors import AdapterMismatch, NoTrainedToken, PromptTooLong
from graftline.stages.lm import scoring
from graftline.stages.lm.chat import continuation, render_supervised
from graftline.stages.lm.in_memory import Loaded

from .conftest import QUESTIONS

CHOICES = ("billing", "technical problem", "order", "other", "no", "x")


@pytest.fixture(scope="module")
def loaded(tiny_directory, two_adapters):
    return Loaded("tiny", tiny_directory, "float32", two_adapters)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def naive(loaded: Loaded, ids: list[int], start: int, adapter: str | None = None) -> list[float]:
    """One sequence alone, all logits, no mask, no positions: log-probabilities of the tokens from `start` on."""
    slot = loaded.adapters.acquire(adapter)
    loaded.adapters.routing.use([slot])
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids])).logits[0]
    loaded.adapters.routing.use(())
    loaded.adapters.release(slot)
    return logits.log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]].tolist()


@pytest.mark.parametrize("adapter", [None, "one", "two"])
def test_choices_equal_one_sequence_a_choice(loaded, adapter):
    prompts = [[user(text)] for text in QUESTIONS]
    choices = [CHOICES[: 1 + index] for index in range(len(prompts))]
    found = scoring.choice_logprobs(loaded, prompts, choices, adapter)
    for prompt, texts, sums in zip(prompts, choices, found, strict=True):
        for text, value in zip(texts, sums, strict=True):
            start, answer = continuation(loaded.tokenizer, prompt, text)
            assert value == pytest.approx(sum(naive(loaded, start + answer, len(start), adapter)), abs=1e-4)


def test_a_choice_does_not_depend_on_the_others(loaded):
    prompt = [user(QUESTIONS[2])]
    ((alone,),) = scoring.choice_logprobs(loaded, [prompt], [["billing"]], None)
    for choices in (["other", "billing"], ["a much longer choice than this", "billing"]):
        assert scoring.choice_logprobs(loaded, [prompt], [choices], None)[0][1] == pytest.approx(alone, abs=1e-4)


def test_choices_are_a_distribution_over_first_tokens(loaded):
    """The likelier of two choices is the one with the larger log-probability; both are below zero."""
    ((first, second),) = scoring.choice_logprobs(loaded, [[user("hello")]], [["yes", "no"]], None)
    assert first < 0 and second < 0 and first != second


@pytest.mark.parametrize("adapter", [None, "one"])
def test_rows_equal_one_row_alone(loaded, adapter):
    rows = [
        [user(text), {"role": "assistant", "content": "the answer " * (index + 1)}]
        for index, text in enumerate(QUESTIONS)
    ]
    rows.append([*rows[0], user("again"), {"role": "assistant", "content": "no"}])
    found = scoring.logprobs(loaded, rows, adapter)
    for row, values in zip(rows, found, strict=True):
        ids, mask = render_supervised(loaded.tokenizer, row)
        alone = naive(loaded, ids, 1, adapter)
        expected = [value for value, trained in zip(alone, mask[1:], strict=True) if trained]
        assert values == pytest.approx(expected, abs=1e-4)


def test_a_whole_row_is_every_token_but_the_first(loaded):
    rows = [[user(text), {"role": "assistant", "content": "yes"}] for text in QUESTIONS]
    for row, values in zip(rows, scoring.logprobs(loaded, rows, None, whole=True), strict=True):
        ids, _ = render_supervised(loaded.tokenizer, row)
        assert values == pytest.approx(naive(loaded, ids, 1), abs=1e-4)


def test_the_last_turn_is_the_rest_of_all_turns(loaded):
    first = [user("hi"), {"role": "assistant", "content": "the answer"}]
    rows = [first, [*first, user("again"), {"role": "assistant", "content": "no"}]]
    alone, both = scoring.logprobs(loaded, rows, None)
    found = scoring.logprobs(loaded, rows, None, last=True)
    assert found[0] == pytest.approx(alone, abs=1e-4) and found[1] == pytest.approx(both[len(alone) :], abs=1e-4)
    assert 0 < len(found[1]) < len(both)
    with pytest.raises(NoTrainedToken, match="does not end in an assistant turn"):
        scoring.logprobs(loaded, [[*first, user("again")]], None, last=True)


def test_packs_hold_the_budget_and_every_tree(loaded):
    trees = [
        scoring.Tree([0] * length, list(range(length)), [0] * length, [(0, 1, 0)]) for length in (200, 300, 20, 600, 5)
    ]
    assert list(scoring._packs(trees, 512)) == [[0, 1], [2], [3], [4]]


def test_a_pack_of_many_rows_leaks_nothing(loaded):
    """A row's values stay the same when the rows packed with it change."""
    row = [user("where is my order"), {"role": "assistant", "content": "on its way"}]
    alone = scoring.logprobs(loaded, [row], None)[0]
    for other in QUESTIONS:
        beside = [user(other), {"role": "assistant", "content": other}]
        assert scoring.logprobs(loaded, [beside, row, beside], None)[1] == pytest.approx(alone, abs=1e-4)


def test_nothing_asked_is_nothing(loaded):
    assert scoring.logprobs(loaded, [], None) == []
    assert scoring.choice_logprobs(loaded, [[user("hi")], [user("ho")]], [[], ["yes"]], None)[0] == []


def test_what_cannot_be_scored_is_refused(loaded):
    with pytest.raises(NoTrainedToken):
        scoring.logprobs(loaded, [[user("hi")]], None)
    with pytest.raises(AdapterMismatch, match="no adapter 'three' is loaded"):
        scoring.logprobs(loaded, [[user("hi"), {"role": "assistant", "content": "ho"}]], "three")
    with pytest.raises(PromptTooLong):
        scoring.choice_logprobs(loaded, [[user("zz" * 4096)]], [["yes"]], None)


def test_tokens_are_those_the_model_reads(loaded):
    from graftline.stages.lm.chat import render

    conversation = [{"role": "user", "content": "where is my order?"}]
    assert scoring.count_tokens(loaded, [conversation] * 3) == 3 * len(render(loaded.tokenizer, conversation))
